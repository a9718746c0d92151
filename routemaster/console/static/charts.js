/* Draws the figures with `data-source` by uPlot, and says in words and in a table what they show.

   The JSON has columns: `at` (seconds since the epoch) and one for each series, null where nothing is known.
   Colours come from the style sheet, so that they follow the colour scheme. */

"use strict";

(() => {
  const SPANS = { "15m": [900, 0], "1h": [3600, 15], "6h": [21600, 60], "24h": [86400, 120] }; // s, s between fetches
  const NARROWEST = 60; // s
  const ROWS = 12; // of the table
  const charts = new Map();
  let span = sessionStorage.getItem("span") in SPANS ? sessionStorage.getItem("span") : "15m";

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

  // the span, or so much of it as is known, if that is less: the chart of a new console is not empty
  const shown = (first) => {
    const now = Date.now() / 1000;
    return [Math.min(now - NARROWEST, Math.max(now - SPANS[span][0], first ?? 0)), now];
  };

  // -- values in words

  const duration = (seconds) => {
    if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
    if (seconds < 60) return `${Math.round(seconds)} s`;
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min${seconds % 60 >= 1 ? ` ${Math.floor(seconds % 60)} s` : ""}`;
    const hours = Math.floor(seconds / 3600), minutes = Math.floor((seconds % 3600) / 60);
    return `${hours} h${minutes ? ` ${minutes} min` : ""}`;
  };
  const number = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  const decimal = new Intl.NumberFormat("en", { maximumSignificantDigits: 2 });
  const worded = (value, unit) => {
    if (value === null || value === undefined) return "–";
    if (unit === "s") return duration(value);
    return (value === 0 || Math.abs(value) >= 10 || Number.isInteger(value) ? number : decimal).format(value) + unit;
  };
  const axis = (value, unit) => {
    if (unit === "s") return value === 0 ? "0" : value < 60 ? `${decimal.format(value)} s` : value < 3600 ? `${value / 60} min` : `${value / 3600} h`;
    if (value >= 1e6) return `${decimal.format(value / 1e6)}M`;
    if (value >= 1e4) return `${number.format(value / 1e3)}k`;
    return Number.isInteger(value) ? number.format(value) : decimal.format(value);
  };

  const DURATIONS = [0.01, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 600, 1800, 3600, 7200, 21600, 86400, 604800]; // ticks, s

  const summary = (series, columns, unit) => {
    const parts = series.map(({ key, label }) => {
      const known = columns[key].filter((value) => value !== null);
      if (!known.length) return `${series.length > 1 ? `${label}: nothing` : "Nothing"} known yet`;
      return `${series.length > 1 ? `${label}: now` : "Now"} ${worded(known.at(-1), unit)}, highest ${worded(Math.max(...known), unit)}, lowest ${worded(Math.min(...known), unit)}`;
    });
    return parts.join("; ");
  };

  const cell = (kind, text, scope) => {
    const made = document.createElement(kind);
    made.textContent = text;
    if (scope) made.scope = scope;
    return made;
  };

  const tabulate = (into, title, series, columns, unit) => {
    const table = document.createElement("table");
    const caption = table.createCaption();
    caption.textContent = title;
    caption.className = "hidden";
    const head = table.createTHead().insertRow();
    head.append(cell("th", "Time", "col"), ...series.map(({ label }) => cell("th", label, "col")));
    const body = table.createTBody(), count = columns.at.length, step = Math.max(1, Math.ceil(count / ROWS));
    for (let place = count - 1; place >= 0; place -= step) {
      const row = body.insertRow();
      row.append(cell("th", clock.format(new Date(columns.at[place] * 1000)), "row"),
        ...series.map(({ key }) => cell("td", worded(columns[key][place], unit))));
    }
    into.replaceChildren(table);
  };

  // -- one chart

  const plot = (figure) => {
    const unit = figure.dataset.unit, place = figure.querySelector(".plot");
    const series = figure.dataset.series.split(";").map((each) => {
      const [key, label] = each.split("=");
      return { key, label };
    });
    const options = () => ({
      width: place.clientWidth,
      height: place.clientHeight,
      cursor: { y: false, points: { size: 6 } },
      legend: { show: false },
      hooks: { setCursor: [(chart) => hover(chart)] },
      scales: { x: { time: true, range: () => shown(state.columns.at[0]) },
                y: { range: (_, low, high) => [0, high > 0 ? high * 1.08 : 1] } },
      axes: [
        { stroke: colour("--pico-muted-color"), grid: { show: false }, ticks: { show: false }, size: 26, space: 70,
          values: [[3600, "{HH}:{mm}", null, null, null, null, null, null, 1], [60, "{HH}:{mm}", null, null, null, null, null, null, 1], [1, "{HH}:{mm}:{ss}", null, null, null, null, null, null, 1]],
          font: "12px system-ui, sans-serif" },
        { stroke: colour("--pico-muted-color"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false },
          size: 56, space: 36, ...(unit === "s" ? { incrs: DURATIONS } : {}), values: (_, ticks) => ticks.map((each) => axis(each, unit)), font: "12px system-ui, sans-serif" },
      ],
      series: [{}, ...series.map(({ label }, index) => ({
        label, stroke: colour(`--series-${index + 1}`), width: 1.75, points: { show: false }, spanGaps: false,
        fill: series.length === 1 ? `${colour("--series-1")}1c` : undefined,
      }))],
    });
    const state = { chart: null, columns: null, fetched: 0, busy: false, shown: "" };
    const words = figure.querySelector(".summary"), details = figure.querySelector("details");
    words.textContent = "Loading…";

    const hover = (chart) => {
      const index = chart.cursor.idx;
      if (index === null || index === undefined || chart.cursor.left < 0) {
        words.textContent = state.shown;
        return;
      }
      const at = clock.format(new Date(state.columns.at[index] * 1000));
      words.textContent = `${at} – ${series.map(({ key, label }) => `${label}: ${worded(state.columns[key][index], unit)}`).join("; ")}`;
    };

    const draw = () => {
      const columns = state.columns;
      if (!columns || !place.clientWidth) return;
      const data = [columns.at, ...series.map(({ key }) => columns[key])];
      if (state.chart) state.chart.setData(data);
      else state.chart = new uPlot(options(), data, place);
      state.shown = summary(series, columns, unit);
      if (!(state.chart.cursor.left >= 0)) words.textContent = state.shown;
      place.setAttribute("role", "img");
      place.setAttribute("aria-label", `${figure.dataset.title}, ${span}. ${state.shown}`);
      if (details.open) tabulate(details.querySelector("div"), figure.dataset.title, series, columns, unit);
    };

    const fetchData = async (force) => {
      const now = Date.now();
      if (state.busy || (!force && now - state.fetched < SPANS[span][1] * 1000)) return;
      const asked = span;
      state.busy = true;
      try {
        const answer = await fetch(`${figure.dataset.source}?span=${asked}`, { headers: { Accept: "application/json" } });
        if (!answer.ok) throw new Error(`the console answered ${answer.status}`);
        const columns = await answer.json();
        if (asked === span) {
          state.columns = columns;
          state.fetched = now;
          draw();
        }
      } catch (error) {
        words.textContent = state.shown || `No figures: ${error.message}`;
      } finally {
        state.busy = false;
      }
      if (asked !== span) await fetchData(true); // another one was chosen meanwhile
    };

    const renew = () => {
      if (state.chart) state.chart.destroy();
      state.chart = null;
      draw();
    };

    details.addEventListener("toggle", draw);
    new ResizeObserver(() => {
      if (state.chart) state.chart.setSize({ width: place.clientWidth, height: place.clientHeight });
      else draw();
    }).observe(place);
    return { fetchData, renew };
  };

  // -- all charts of the page

  const find = () => {
    for (const figure of document.querySelectorAll("figure[data-source]")) {
      if (charts.has(figure)) continue;
      const made = plot(figure);
      charts.set(figure, made);
      made.fetchData(true);
    }
  };

  const choose = (chosen) => {
    span = chosen;
    sessionStorage.setItem("span", span);
    for (const button of document.querySelectorAll("[data-span]"))
      button.setAttribute("aria-pressed", String(button.dataset.span === span));
    for (const chart of charts.values()) chart.fetchData(true);
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-span]");
    if (button) choose(button.dataset.span);
  });
  document.addEventListener("console:news", () => charts.forEach((chart) => chart.fetchData(false)));
  document.addEventListener("htmx:afterSwap", find);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((chart) => chart.renew()));
  find();
  choose(span);
})();
