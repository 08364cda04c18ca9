"""Style sheet and script of the report page; both go into the page as they stand."""

from __future__ import annotations

STYLE = """
:root {
  --ink: #16202c; --text: #2b3644; --muted: #5b6878; --line: #e2e6eb; --page: #f5f6f8;
  --card: #ffffff; --front: #0072b2; --front-soft: #e8f2f9; --mark: #fff6e0;
  color-scheme: light;
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body {
  margin: 0; background: var(--page); color: var(--text); line-height: 1.5; font-size: 16px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  -webkit-text-size-adjust: 100%;
}
main, header > div, footer { max-width: 1360px; margin: 0 auto; padding: 0 28px; }
header { background: var(--card); border-bottom: 1px solid var(--line); padding: 30px 0 26px; }
.mark { color: var(--front); font-size: 13px; font-weight: 650; letter-spacing: .09em;
  text-transform: uppercase; }
h1 { color: var(--ink); font-size: 32px; font-weight: 680; letter-spacing: -.015em;
  line-height: 1.2; margin: 4px 0 12px; overflow-wrap: anywhere; }
h2 { color: var(--ink); font-size: 20px; font-weight: 650; letter-spacing: -.005em;
  margin: 0 0 4px; }
h3 { color: var(--ink); font-size: 15px; font-weight: 620; margin: 0 0 6px; }
.facts { display: flex; flex-wrap: wrap; gap: 4px 26px; margin: 0; font-size: 14.5px; }
.facts div { display: flex; gap: 7px; min-width: 0; }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; color: var(--ink); overflow-wrap: anywhere; }
.headline { font-size: 21px; line-height: 1.45; color: var(--ink); margin: 22px 0 0;
  max-width: 60ch; }
.headline b { color: var(--front); font-weight: 680; }
section { margin: 34px 0 0; }
.note { color: var(--muted); font-size: 14.5px; margin: 0 0 14px; max-width: 92ch; }
.cards { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 18px 20px; min-width: 0; }
.card .label { color: var(--muted); font-size: 14px; }
.card .value { color: var(--ink); font-size: 33px; font-weight: 680; letter-spacing: -.02em;
  line-height: 1.25; margin: 3px 0 2px; font-variant-numeric: tabular-nums; }
.card .detail { font-size: 14px; color: var(--text); }
.grid { display: grid; gap: 16px; }
.three { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.two { grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); }
.panel { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 16px 14px 8px; min-width: 0; }
.panel h3 { padding: 0 6px; }
.panel .note { padding: 0 6px; font-size: 13.5px; margin-bottom: 4px; }
.plot { width: 100%; }
.empty { color: var(--muted); padding: 26px 6px 34px; font-size: 15px; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 22px; list-style: none; margin: 0 0 14px;
  padding: 0; font-size: 14px; }
.legend li { display: flex; align-items: center; gap: 8px; }
.legend svg { width: 18px; height: 16px; flex: none; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; }
table { border-collapse: collapse; width: 100%; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 9px 11px; text-align: right; white-space: nowrap; }
th { background: #fafbfc; border-bottom: 1px solid var(--line); padding: 0; }
th button { all: unset; box-sizing: border-box; cursor: pointer; display: block; width: 100%;
  padding: 11px; color: var(--muted); font-weight: 600; font-size: 13px; }
th button:hover { color: var(--ink); }
th button:focus-visible, td button:focus-visible, #chosen button:focus-visible {
  outline: 2px solid var(--front); outline-offset: -2px; border-radius: 6px; }
th button::after { content: "\\2195"; opacity: .35; margin-left: 6px; font-size: 12px; }
th[aria-sort="ascending"] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort="descending"] button::after { content: "\\2193"; opacity: 1; }
th[aria-sort="ascending"] button, th[aria-sort="descending"] button { color: var(--ink); }
th.plain { padding: 11px; color: var(--muted); font-weight: 600; font-size: 13.5px; }
.left, .left button { text-align: left; }
tbody tr + tr td { border-top: 1px solid #eef0f3; }
tbody tr { cursor: pointer; }
tbody tr:hover td { background: var(--front-soft); }
tbody tr.chosen td { background: var(--mark); }
td .soft { color: var(--muted); }
.command { display: flex; align-items: center; justify-content: space-between; }
.command code { white-space: normal; line-height: 1.45; }
.command span { display: inline-block; white-space: nowrap; }
code { font-family: ui-monospace, SFMono-Regular, "SF Mono", Menlo, Consolas,
  "DejaVu Sans Mono", monospace; font-size: 12.5px; color: var(--ink); }
td button, #chosen button { all: unset; cursor: pointer; color: var(--front); font-size: 13.5px;
  font-weight: 600; padding: 3px 8px; margin-left: 8px; border-radius: 6px; }
td button:hover, #chosen button:hover { background: var(--front-soft); }
details { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 12px 18px; margin-bottom: 10px; }
details summary { cursor: pointer; color: var(--ink); overflow-wrap: anywhere; }
details summary .soft { color: var(--muted); margin-left: 8px; }
details pre { overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px;
  color: var(--text); background: var(--page); padding: 12px; border-radius: 8px; }
.settings { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr));
  gap: 8px 34px; margin: 0; font-size: 14.5px; }
.settings div { display: flex; justify-content: space-between; gap: 18px;
  border-bottom: 1px solid #eef0f3; padding: 5px 0; min-width: 0; }
.settings dt { color: var(--muted); flex: none; }
.settings dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
footer { color: var(--muted); font-size: 13.5px; padding-top: 30px; padding-bottom: 70px; }
#chosen { position: fixed; left: 50%; bottom: 18px; transform: translateX(-50%);
  background: var(--card); border: 1px solid var(--line); border-radius: 12px; z-index: 1200;
  box-shadow: 0 8px 30px rgba(22, 32, 44, .16); padding: 11px 18px; font-size: 14.5px;
  max-width: calc(100vw - 32px); display: flex; flex-wrap: wrap; gap: 4px 16px;
  align-items: center; }
#chosen[hidden] { display: none; }
@media (max-width: 1080px) { .three, .two { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 640px) {
  main, header > div, footer { padding-left: 16px; padding-right: 16px; }
  h1 { font-size: 26px; } .headline { font-size: 18px; } .card .value { font-size: 28px; }
}
@media print {
  body { background: #fff; } #chosen { display: none; }
  .panel, .card, .scroll { break-inside: avoid; }
}
"""

SCRIPT = """
"use strict";
const page = JSON.parse(document.getElementById("paredown-data").textContent);
const flatButtons = [["toImage", "zoom2d", "pan2d", "resetScale2d"]];
const spaceButtons = [["toImage", "orbitRotation", "pan3d", "resetCameraDefault3d"]];

function configFor(spec) {
  const buttons = spec.axes && spec.axes.length === 3 ? spaceButtons : flatButtons;
  return {
    responsive: true, displaylogo: false, modeBarButtons: buttons,
    displayModeBar: spec.columns ? false : "hover",
  };
}

const plots = [];

function choose(number) {
  const trial = number === null ? null : page.trials[number];
  for (const { node, spec } of plots) {
    if (spec.axes) {
      const index = node.data.findIndex((trace) => trace.name === "selected");
      const update = {};
      ["x", "y", "z"].slice(0, spec.axes.length).forEach((key, i) => {
        update[key] = [trial ? [trial.values[spec.axes[i]]] : []];
      });
      Plotly.restyle(node, update, [index]);
    } else if (spec.columns) {
      const column = number === null ? -1 : spec.columns.indexOf(Number(number));
      const shapes = column < 0 ? [] : [{
        type: "rect", xref: "x", yref: "paper", x0: column - 0.5, x1: column + 0.5,
        y0: 0, y1: 1, line: { color: "#16202c", width: 2 },
      }];
      Plotly.relayout(node, { shapes });
    }
  }
  document.querySelectorAll("tr[data-trial]").forEach((row) => {
    row.classList.toggle("chosen", number !== null && row.dataset.trial === String(number));
  });
  const bar = document.getElementById("chosen");
  bar.hidden = !trial;
  if (trial) {
    bar.querySelector(".summary").textContent = trial.summary;
    bar.querySelector("code").textContent = trial.command;
  }
}

function draw() {
  for (const [id, spec] of Object.entries(page.figures)) {
    const node = document.getElementById(id);
    const scene = spec.figure.layout.scene;
    if (scene && node.clientWidth < 560) {
      for (const key of ["x", "y", "z"]) scene.camera.eye[key] *= 1.45;
    }
    Plotly.newPlot(node, spec.figure.data, spec.figure.layout, configFor(spec));
    plots.push({ node, spec });
    node.on("plotly_click", (event) => {
      const point = event.points[0];
      const number = spec.columns ? spec.columns[point.pointIndex[1]] : point.customdata;
      if (number !== undefined && page.trials[number]) choose(number);
    });
  }
}

function sortTable(header) {
  const table = header.closest("table");
  const column = [...header.parentNode.children].indexOf(header);
  const down = header.getAttribute("aria-sort") === "ascending";
  header.parentNode.querySelectorAll("[aria-sort]").forEach((other) => {
    other.setAttribute("aria-sort", "none");
  });
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => Number(row.children[column].dataset.value);
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => (down ? value(b) - value(a) : value(a) - value(b)));
  table.tBodies[0].append(...rows);
}

function copy(text, button) {
  const done = (word) => {
    button.textContent = word;
    setTimeout(() => { button.textContent = "Copy"; }, 1400);
  };
  if (!navigator.clipboard) { window.prompt("Copy this command:", text); return; }
  navigator.clipboard.writeText(text).then(() => done("Copied"), () => {
    window.prompt("Copy this command:", text);
  });
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) {
    const header = button.closest("th");
    if (header) sortTable(header);
    else if (button.id === "clear") choose(null);
    else if (button.className === "copy") {
      copy(button.parentNode.querySelector("code").textContent, button);
    }
    return;
  }
  const row = event.target.closest("tr[data-trial]");
  if (row && !String(window.getSelection())) choose(Number(row.dataset.trial));
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") choose(null); });
draw();
document.body.dataset.state = "drawn";
"""
