"""A judge behind an OpenAI-compatible chat endpoint. The `openai` client is imported when a question is asked."""
