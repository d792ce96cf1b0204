"use strict";
// The page of `lumina watch`: asks the server for the state of all runs every few seconds, and draws what changed.

const EVERY = 4000; // milliseconds between two questions
const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#7b3294"];
const TITLES = {
  samples_per_second: "Samples a second",
  gradient_norm: "Norm of the gradient",
  parameter_norm: "Norm of the parameters",
  learning_rate: "Learning rate",
  samples: "Samples in a step (packing)",
  bad_samples: "Samples that could not be used",
};
const SMOOTHED = /loss|gradient_norm|samples_per_second/;
const HELD_OUT = /^(held_out|trained_on)_loss/;
const hidden = new Set(); // folders of runs that are switched off
let state = { runs: [] };
let version = null;
let atNewest = true; // the slider of the sheets follows the newest

const find = (id) => document.getElementById(id);
const element = (tag, text = "", attributes = {}) => Object.assign(document.createElement(tag), { textContent: text }, attributes);
const plain = (text) => text.replace(/[&<>]/g, (letter) => `&#${letter.charCodeAt(0)};`); // Plotly reads HTML in names
const color = (index) => COLORS[index % COLORS.length];
const shown = () => state.runs.map((run, index) => ({ ...run, index })).filter((run) => !hidden.has(run.folder));

/** The chart that a metric belongs to: all losses, those of one kind of data, or one of its own. */
function chartOf(metric) {
  if (/(^|_)loss(_middle)?$/.test(metric)) return "Loss";
  if (/loss(_middle)?\//.test(metric)) return "Loss by kind of data";
  return (Object.hasOwn(TITLES, metric) && TITLES[metric]) || metric.replaceAll("_", " ");
}

/** An exponential moving average that starts without bias, and leaves gaps where values are missing. */
function smoothed(values, weight) {
  let sum = 0;
  let total = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

function traces(run, metric, curve) {
  const x = curve[find("over").value];
  const weight = SMOOTHED.test(metric) ? Number(find("smoothing").value) : 0;
  const label = metric === "loss" || chartOf(metric) !== "Loss" ? metric : metric.replaceAll("_", " ");
  const name = plain(state.runs.length > 1 ? `${run.name}: ${label}` : label);
  const line = { color: color(run.index), width: 2 };
  if (HELD_OUT.test(metric)) {
    const error_y = { type: "data", array: run.curves[`${metric}_error`]?.values ?? [], thickness: 1 };
    return [{ x, y: curve.values, name, mode: "lines+markers", line: { ...line, dash: "dot" }, marker: { size: 6 }, error_y }];
  }
  const faint = { x, y: curve.values, mode: "lines", line: { ...line, width: 1 }, opacity: 0.25, showlegend: false, hoverinfo: "skip" };
  const smooth = { x, y: smoothed(curve.values, weight), name, mode: "lines", line };
  return weight > 0 ? [faint, smooth] : [smooth];
}

function drawCharts() {
  const charts = new Map();
  for (const run of shown()) {
    for (const [metric, curve] of Object.entries(run.curves)) {
      if (metric.endsWith("_error")) continue; // bars of the metric that it belongs to
      const title = chartOf(metric);
      if (!charts.has(title)) charts.set(title, []);
      charts.get(title).push(...traces(run, metric, curve));
    }
  }
  const box = find("charts");
  const titles = [...charts.keys()].sort((a, b) => b.startsWith("Loss") - a.startsWith("Loss"));
  for (const chart of [...box.children]) if (!charts.has(chart.dataset.title)) chart.remove();
  for (const title of titles) {
    let chart = [...box.children].find((child) => child.dataset.title === title);
    if (chart === undefined) {
      chart = element("div", "", { className: title.startsWith("Loss") ? "chart wide" : "chart" });
      chart.dataset.title = title;
      box.append(chart);
    }
    const isLog = title.startsWith("Loss") && find("log").checked;
    const layout = {
      title: { text: plain(title), font: { size: 15 }, x: 0.02 },
      margin: { l: 60, r: 15, t: 40, b: 40 },
      xaxis: { title: { text: find("over").value === "seen" ? "samples" : "steps", standoff: 5 } },
      yaxis: { type: isLog ? "log" : "linear", exponentformat: "power", rangemode: title.startsWith("Samples") ? "tozero" : "normal" },
      showlegend: title.startsWith("Loss"), // elsewhere colors say which run it is
      legend: { orientation: "h", y: -0.15 },
      hovermode: "x unified",
      uirevision: `${title} ${isLog} ${find("over").value}`, // a zoom stays when new points come
    };
    Plotly.react(chart, charts.get(title), layout, { responsive: true, displaylogo: false, displayModeBar: false });
  }
}

function drawRuns() {
  const table = find("runs");
  const heads = ["run", "step", "loss", "held out", "samples/s", "bad samples"];
  const rows = state.runs.map((run, index) => {
    const row = element("tr");
    const label = element("label");
    const box = element("input", "", { type: "checkbox", checked: !hidden.has(run.folder) });
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(run.folder);
      else hidden.add(run.folder);
      draw();
    });
    const swatch = element("span", "", { className: "swatch" });
    swatch.style.background = color(index);
    label.append(box, swatch, run.name);
    label.title = run.folder;
    const last = (metric) => run.curves[metric]?.values.findLast((value) => value !== null);
    const steps = run.curves.loss?.steps.at(-1) ?? 0;
    const numbers = [last("loss"), last("held_out_loss") ?? last("trained_on_loss"), last("samples_per_second"), last("bad_samples")];
    const cells = [`${steps}${run.steps === null ? "" : ` of ${run.steps}`}`];
    cells.push(...numbers.map((value) => (value === undefined ? "" : String(Number(value.toPrecision(4))))));
    const first = element("td");
    first.append(label);
    row.append(first, ...cells.map((text) => element("td", text)));
    return row;
  });
  const head = element("tr");
  head.append(...heads.map((text) => element("th", text, { scope: "col" })));
  table.replaceChildren(head, ...rows);
  const problems = state.runs.flatMap((run) => run.problems.map((text) => `${run.name}: ${text}`));
  find("problems").replaceChildren(...problems.map((text) => element("li", text)));
}

function drawSheets() {
  const steps = [...new Set(shown().flatMap((run) => run.sheets.map((sheet) => sheet.step)))].sort((a, b) => a - b);
  find("samples").hidden = steps.length === 0;
  if (steps.length === 0) return;
  const slider = find("sheet");
  slider.max = steps.length - 1;
  if (atNewest) slider.value = steps.length - 1;
  const step = steps[Math.min(Number(slider.value), steps.length - 1)];
  find("sheet-value").textContent = step;
  slider.setAttribute("aria-valuetext", `step ${step}`);
  const box = find("sheets");
  const figures = shown().flatMap((run) => {
    const sheet = run.sheets.findLast((one) => one.step <= step);
    if (sheet === undefined) return [];
    const source = `/sheet/${run.index}/${encodeURIComponent(sheet.name)}`;
    const old = [...box.children].find((child) => child.dataset.source === source);
    if (old !== undefined) return [old];
    const figure = element("figure");
    figure.dataset.source = source;
    figure.append(element("h3", `${run.name}, step ${sheet.step}`));
    figure.append(element("img", "", { src: source, alt: `samples of ${run.name} at step ${sheet.step}` }));
    return [figure];
  });
  box.replaceChildren(...figures);
}

function drawSettings() {
  const runs = shown();
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.settings)))];
  const differ = (name) => new Set(runs.map((run) => run.settings[name])).size > 1;
  const all = find("all").checked || runs.length < 2;
  const head = element("tr");
  head.append(element("th", "setting", { scope: "col" }), ...runs.map((run) => element("th", run.name, { scope: "col" })));
  const rows = names.filter((name) => all || differ(name)).map((name) => {
    const row = element("tr");
    row.append(element("td", name), ...runs.map((run) => element("td", run.settings[name] ?? "")));
    return row;
  });
  const none = element("tr");
  none.append(element("td", "the settings are the same", { colSpan: runs.length + 1 }));
  find("settings").replaceChildren(head, ...(rows.length > 0 || runs.length < 2 ? rows : [none]));
}

function draw() {
  drawRuns();
  drawCharts();
  drawSheets();
  drawSettings();
}

async function ask() {
  try {
    const answer = await fetch("/state");
    if (!answer.ok) throw new Error(await answer.text());
    const current = answer.headers.get("ETag");
    if (current !== version) {
      state = await answer.json();
      version = current;
      draw();
    }
    find("fresh").textContent = `read at ${new Date().toLocaleTimeString()}`;
  } catch (error) {
    find("fresh").textContent = `the server does not answer (${error.message}); what is below is old`;
  }
  setTimeout(ask, EVERY);
}

find("smoothing").addEventListener("input", () => {
  find("smoothing-value").textContent = Number(find("smoothing").value).toFixed(2);
  drawCharts();
});
for (const id of ["over", "log"]) find(id).addEventListener("change", drawCharts);
find("all").addEventListener("change", drawSettings);
find("sheet").addEventListener("input", () => {
  atNewest = Number(find("sheet").value) === Number(find("sheet").max);
  drawSheets();
});
ask();
