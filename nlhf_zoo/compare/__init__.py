"""The head-to-head: games x solvers x seeds at equal budgets, into one folder."""
