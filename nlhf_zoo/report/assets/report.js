// Draws the figures from the JSON beside them, and answers the page's few controls.
(() => {
  "use strict";
  const root = document.documentElement;
  const dark = () => root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const coloured = new Set(["color", "fillcolor"]);

  // Colours are resolved when drawn, so that one figure serves both pages.
  const resolve = (value, key) => {
    if (Array.isArray(value)) return ["customdata", "text", "x", "y", "z"].includes(key) ? value : value.map((v) => resolve(v, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolve(v, k)]));
    }
    if (typeof value === "string" && coloured.has(key) && value.startsWith("var(")) return css(value.slice(4, -1));
    return value;
  };
  const diverging = () => [
    [0, css("--low")], [0.25, css("--low-mid")], [0.5, css("--middle")], [0.75, css("--high-mid")], [1, css("--high")],
  ];

  const hidden = new Set();
  const state = (section) => ({
    axis: section?.querySelector("input[data-control=axis]:checked")?.value ?? "queries",
    scale: section?.querySelector("input[data-control=scale]:checked")?.value ?? "log",
    cycle: section?.querySelector("input[data-control=cycle]:checked")?.value ?? "",
    hidden,
  });
  const axisTitle = { queries: "Oracle queries", seconds: "Solver's wall time, seconds", tokens: "Generated tokens", steps: "Steps" };

  const short = (value) => (value === null ? "–" : value === 0 ? "0" : Math.abs(value) >= 1e-3 && Math.abs(value) < 1e4
    ? String(Number(value.toPrecision(4))) : value.toExponential(2));
  // One curve is a line with its readings, and below it a band between two lines without width.
  const curve = (trace, axes) => {
    const spent = axes.filter((axis) => axis in trace.xs).map((axis) => [axis, trace.xs[axis]]);
    const text = trace.y.map((value, at) => {
      const range = trace.low ? `<br>${short(trace.low[at])} to ${short(trace.high[at])} over seeds` : "";
      const rest = spent.filter(([, xs]) => xs[at] !== null).map(([axis, xs]) => `${axis} ${short(xs[at])}`).join(", ");
      return value === null ? "" : `${short(value)}${range}<br>${rest}`;
    });
    const { low, high, fillcolor, ...line } = trace;
    const drawn = { ...line, text, hovertemplate: "<b>%{fullData.name}</b> %{text}<extra></extra>" };
    if (!low) return [drawn];
    const edge = { type: "scatter", mode: "lines", group: trace.group, xs: trace.xs, hoverinfo: "skip",
      line: { width: 0, color: trace.line.color } };
    return [{ ...edge, y: low }, { ...edge, y: high, fill: "tonexty", fillcolor }, drawn];
  };
  const traces = (figure, now) => figure.data.flatMap((trace) =>
    trace.xs ? curve(trace, ["steps", "queries", "tokens", "seconds"]) : [trace]).map((trace) => {
    const drawn = resolve(trace, "");
    if (trace.xs) {
      const xs = trace.xs[now.axis] ?? Object.values(trace.xs)[0];
      drawn.x = xs.map((x) => (now.scale === "log" && x !== null && x <= 0 ? null : x));
      delete drawn.xs;
    }
    if (trace.colorscale === "diverging") drawn.colorscale = diverging();
    if (trace.names) {
      drawn.text = trace.names.map((row) => trace.names.map((column) => `${row} ${trace.verb} ${column}`));
      delete drawn.names;
      delete drawn.verb;
    }
    if (trace.type === "heatmap" && now.narrow) {
      drawn.showscale = false;
      drawn.textfont = { size: figure.rows > 7 ? 8 : 10 };
    }
    if (now.hidden.has(trace.group)) drawn.visible = false;
    delete drawn.group;
    return { showlegend: false, ...drawn };
  });

  const layout = (figure, now, width) => {
    const narrow = now.narrow;
    const base = resolve(figure.layout, "");
    const wide = base.yaxis?.wide;
    delete base.yaxis?.wide;
    const rows = figure.rows ?? 0;
    const height = { convergence: narrow ? 300 : 380, lines: narrow ? 280 : 340,
      matrix: Math.max(300, Math.min(width * 0.92, 620)), rows: 110 + rows * 38 }[figure.kind];
    const axis = { gridcolor: css("--grid"), linecolor: css("--rule"), zeroline: false, automargin: true,
      title: { standoff: 10 }, tickfont: { size: narrow ? 11 : 12 }, fixedrange: matchMedia("(pointer: coarse)").matches };
    const both = (own) => ({ ...axis, ...own, title: { ...axis.title, ...(own?.title ?? {}) } });
    const result = { ...base, height, width, autosize: false,
      margin: { l: narrow ? 46 : 62, r: narrow ? 8 : 18, t: 26, b: 46 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: css("--sans"), size: 13, color: css("--ink") },
      hoverlabel: { bgcolor: css("--card"), bordercolor: css("--rule"), font: { family: css("--sans"), color: css("--ink") }, align: "left" },
      xaxis: both(base.xaxis), yaxis: both(base.yaxis), dragmode: narrow ? false : "zoom", hovermode: "closest" };
    if (figure.kind === "convergence") {
      Object.assign(result.xaxis, { type: now.scale, title: { ...axis.title, text: axisTitle[now.axis] } });
      for (const name of ["xaxis", "yaxis"]) Object.assign(result[name], { exponentformat: "power", showexponent: "all" });
      if (now.scale === "linear") result.xaxis.exponentformat = "none";
      for (const name of ["xaxis", "yaxis"]) if (result[name].type === "log") result[name].dtick = spacing(figure, now, name, narrow);
    }
    if (figure.kind === "matrix") {
      for (const name of ["xaxis", "yaxis"]) {
        Object.assign(result[name], { showgrid: false, ticks: "" });
        // Twenty slanted labels do not fit on a phone.
        if (narrow && result[name].tickvals.length > 12) {
          const every = Math.ceil(result[name].tickvals.length / 8);
          for (const key of ["tickvals", "ticktext"]) result[name][key] = result[name][key].filter((_, at) => at % every === 0);
        }
      }
      result.margin.t = 8; result.margin.b = 12;
      const cycle = now.cycle === "" ? [] : figure.cycles[Number(now.cycle)];
      const cells = cycle.map((row, at) => [row, cycle[(at + 1) % cycle.length]]);
      result.shapes = [...(result.shapes ?? []), ...cells.map(([y, x]) => ({ type: "rect", x0: x - 0.5, x1: x + 0.5, y0: y - 0.5, y1: y + 0.5,
        line: { width: figure.rows > 60 ? 2 : 3, color: css("--ink") } }))];
    }
    if (wide) {
      result.yaxis.showgrid = false;
      if (narrow && result.yaxis.ticktext) result.yaxis.ticktext = result.yaxis.ticktext.map((text) => text.split(" · ").map(shorten).join("<br>"));
      if (narrow && figure.kind === "matrix") result.xaxis.ticktext = result.xaxis.ticktext.map(shorten);
    }
    return result;
  };
  // Entities count as one character, and are never cut in two.
  const shorten = (text) => {
    const letters = text.match(/&[a-z#0-9]+;|[^]/gi) ?? [];
    return letters.length > 18 ? letters.slice(0, 17).join("") + "…" : text;
  };
  // Whole decades between ticks: half a decade is no round number.
  const spacing = (figure, now, name, narrow) => {
    const values = figure.data.filter((t) => !now.hidden.has(t.group))
      .flatMap((t) => (name === "yaxis" ? t.y : t.xs[now.axis] ?? [])).filter((v) => v > 0);
    const decades = Math.log10(values.reduce((a, b) => Math.max(a, b), 1e-300) / values.reduce((a, b) => Math.min(a, b), 1e300));
    return Math.max(1, Math.ceil(decades / (narrow ? 5 : 7)));
  };

  const draw = (plot) => {
    const figure = plot.figure ??= JSON.parse(document.getElementById(plot.dataset.figure).textContent);
    const now = { ...state(plot.closest("[data-controls]")), narrow: plot.clientWidth < 560 };
    const config = { displaylogo: false, responsive: false, displayModeBar: matchMedia("(hover: none)").matches ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"] };
    plot.style.minHeight = 0;
    Plotly.react(plot, traces(figure, now), layout(figure, now, plot.clientWidth), config);
  };
  // A figure is drawn when it comes near the window, and again when something about it changes.
  const plots = [...document.querySelectorAll(".plot")];
  const drawn = new Set();
  const drawAll = () => drawn.forEach((plot) => plot.clientWidth && draw(plot));
  const coming = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach(({ target }) => {
    coming.unobserve(target);
    drawn.add(target);
    draw(target);
  }), { rootMargin: "600px 0px" });
  plots.forEach((plot) => coming.observe(plot));
  addEventListener("beforeprint", () => plots.filter((plot) => plot.clientWidth).forEach((plot) => { drawn.add(plot); draw(plot); }));

  const button = document.getElementById("theme");
  const showTheme = () => {
    button.setAttribute("aria-pressed", String(dark()));
  };
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("nlhf-zoo-theme", root.dataset.theme); } catch { /* a file page may have no storage */ }
    showTheme();
    drawAll();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { showTheme(); drawAll(); });

  // Who is hidden is hidden on the whole page: figures, rows of tables, and the other keys.
  const show = (group, shown) => {
    hidden[shown ? "delete" : "add"](group);
    document.querySelectorAll("input[data-control=group]").forEach((box) => { if (box.value === group) box.checked = shown; });
    document.querySelectorAll("tr[data-group]").forEach((row) => { row.hidden = hidden.has(row.dataset.group); });
    drawAll();
  };
  document.querySelectorAll("[data-controls]").forEach((section) => section.addEventListener("change", ({ target }) => {
    if (target.dataset.control === "group") show(target.value, target.checked);
    else section.querySelectorAll(".plot").forEach((plot) => drawn.has(plot) && draw(plot));
  }));
  // A browser may bring the boxes back as they were before a reload.
  document.querySelectorAll("input[data-control=group]:not(:checked)").forEach((box) => show(box.value, false));
  // A link into something folded opens it.
  const unfold = () => document.getElementById(location.hash.slice(1))?.querySelector(":scope > details.fold")?.setAttribute("open", "");
  addEventListener("hashchange", unfold);
  unfold();

  const value = (row, at) => {
    const cell = row.cells[at];
    if (!cell || cell.classList.contains("none")) return null;
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
  };
  const order = (a, b) => typeof a === "number" && typeof b === "number"
    ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
  const sort = (heading) => {
    const body = heading.closest("table").tBodies[0];
    const down = heading.ariaSort === "ascending";
    for (const other of heading.parentElement.cells) other.ariaSort = "none";
    heading.ariaSort = down ? "descending" : "ascending";
    const rows = [...body.rows].map((row) => [value(row, heading.cellIndex), row]);
    // Empty cells stay at the end, whichever way the rest goes.
    rows.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : (down ? -1 : 1) * order(a, b)));
    body.append(...rows.map(([, row]) => row));
  };
  document.querySelectorAll("button.sort").forEach((b) => b.addEventListener("click", () => sort(b.closest("th"))));

  document.querySelectorAll("button.copy").forEach((b) => b.addEventListener("click", async () => {
    const code = b.closest(".command").querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      b.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      b.textContent = "Selected";
    }
    setTimeout(() => { b.textContent = "Copy"; }, 2000);
  }));

  showTheme();
  let width = innerWidth;
  let waiting = 0;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 120);
  });
  root.dataset.ready = "true";
})();
