"use strict";
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const known = read("known"), measured = read("measured"), drawing = document.getElementById("drawing"), svg = drawing.querySelector("svg");
const whole = svg.viewBox.baseVal, full = [whole.x, whole.y, whole.width, whole.height];
let view = [...full];

// ---- moving the picture ----
function show() { svg.setAttribute("viewBox", view.join(" ")); }
function unit() { return Math.max(view[2] / drawing.clientWidth, view[3] / drawing.clientHeight); }
function zoom(factor, x = view[0] + view[2] / 2, y = view[1] + view[3] / 2) {
  const width = Math.min(Math.max(view[2] * factor, 60), 2 * full[2] + 2 * full[3]), by = width / view[2];
  view = [x - (x - view[0]) * by, y - (y - view[1]) * by, width, view[3] * by];
  show();
}
function place(event) {
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  return [point.x, point.y];
}
function fitted() {
  const height = full[2] * drawing.clientHeight / drawing.clientWidth;
  view = [full[0], full[1], full[2], height];
  show();
}
const held = new Map();
let moved = false;
drawing.addEventListener("wheel", (event) => { event.preventDefault(); zoom(event.deltaY > 0 ? 1.2 : 1 / 1.2, ...place(event)); }, { passive: false });
drawing.addEventListener("pointerdown", (event) => { held.set(event.pointerId, event); moved = false; });
drawing.addEventListener("pointermove", (event) => {
  const before = held.get(event.pointerId);
  if (!before) return;
  if (held.size === 1) {
    const step = unit();
    view[0] -= (event.clientX - before.clientX) * step;
    view[1] -= (event.clientY - before.clientY) * step;
    moved = moved || Math.hypot(event.clientX - before.clientX, event.clientY - before.clientY) > 2;
    show();
  } else {
    const other = [...held.values()].find((each) => each.pointerId !== event.pointerId);
    const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
    zoom(apart(before) / Math.max(apart(event), 1), ...place(event));
    moved = true;
  }
  held.set(event.pointerId, event);
});
for (const end of ["pointerup", "pointercancel", "pointerleave"]) drawing.addEventListener(end, (event) => held.delete(event.pointerId));
drawing.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }, step = steps[event.key];
  if (step) { view[0] += step[0] * view[2] / 8; view[1] += step[1] * view[3] / 8; show(); }
  else if (event.key === "+") zoom(1 / 1.2);
  else if (event.key === "-") zoom(1.2);
  else if (event.key === "Enter" && event.target.dataset.id) { choose(event.target); return; }
  else return;
  event.preventDefault();
});
document.getElementById("closer").onclick = () => zoom(1 / 1.4);
document.getElementById("farther").onclick = () => zoom(1.4);
document.getElementById("whole").onclick = () => { view = [...full]; show(); };

// ---- what is known of an operator ----
svg.setAttribute("role", "group");
const boxes = [...svg.querySelectorAll("g[data-name]")];
for (const box of boxes) {
  box.dataset.id = box.closest("g[data-panel]").dataset.panel + "/" + box.dataset.name;
  if (known[box.dataset.id]) { box.setAttribute("tabindex", "0"); box.setAttribute("role", "button"); box.setAttribute("aria-label", box.querySelector("text").textContent + ", " + box.dataset.name); }
}
function made(tag, text) { const element = document.createElement(tag); element.textContent = text; return element; }
const SVG = "http://www.w3.org/2000/svg", COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
function drawn(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}
const short = (value) => String(Number(value.toPrecision(3))).replace("-", "\u2212");
// Bars on a log scale: one value is a visible bar.
function bars(found, title, kind) {
  const width = 280, height = 96, most = Math.log(2 * Math.max(...found.counts) + 1), step = width / found.counts.length;
  const picture = drawn("svg", { class: "bars", viewBox: `0 0 ${width} ${height + 14}`, role: "img", "aria-label": title });
  let path = "";
  found.counts.forEach((count, i) => { if (count) { const tall = height * Math.log(2 * count + 1) / most; path += `M${(i * step).toFixed(1)} ${height}v${(-tall).toFixed(1)}h${(0.9 * step).toFixed(2)}V${height}z`; } });
  picture.append(drawn("path", { d: path, class: kind }));
  const place = (value) => (value - found.low) / (found.high - found.low) * width;
  found.limits.forEach((limit, i) => {
    const used = limit.name === "used";
    for (const end of new Set([limit.low, limit.high])) if (end !== 0 && place(end) <= width + 1)
      picture.append(drawn("line", { x1: place(end).toFixed(1), x2: place(end).toFixed(1), y1: 0, y2: height, stroke: used ? "#c62828" : COLOURS[i % 6], "stroke-dasharray": used ? "none" : "3 2" }));
  });
  picture.append(drawn("text", { x: 0, y: height + 12 }, short(found.low)), drawn("text", { x: width, y: height + 12, "text-anchor": "end" }, short(found.high)));
  const list = document.createElement("ul");
  list.className = "limits";
  found.limits.forEach((limit, i) => {
    const line = made("li", `${limit.name}: ${limit.low ? short(limit.low) + " .. " : ""}${short(limit.high)}`), mark = document.createElement("i");
    mark.style.background = limit.name === "used" ? "#c62828" : COLOURS[i % 6];
    line.prepend(mark);
    list.append(line);
  });
  return [made("dt", title), (() => { const cell = document.createElement("dd"); cell.append(picture, list); return cell; })()];
}
function choose(box) {
  const found = known[box.dataset.id];
  if (!found) return;
  for (const other of boxes) other.classList.toggle("chosen", other === box);
  const list = document.createElement("dl");
  for (const [name, value] of found.rows) list.append(made("dt", name), made("dd", value));
  if (found.tensor) list.append(...bars(measured.tensors[found.tensor], `values of ${found.tensor} in float, counts on a log scale`, "values"));
  if (found.weights) list.append(...bars(measured.weights[found.weights], "codes of its weights, counts on a log scale", "weights"));
  document.getElementById("details").replaceChildren(made("h3", box.dataset.name), list);
}
function centre(box) {
  const at = box.getBBox(), panel = box.closest("g[data-panel]").transform.baseVal.consolidate().matrix;
  view[0] = at.x + at.width / 2 + panel.e - view[2] / 2;
  view[1] = at.y + at.height / 2 + panel.f - view[3] / 2;
  show();
}
svg.addEventListener("click", (event) => { const box = event.target.closest("g[data-name]"); if (box && !moved) choose(box); });

// ---- search ----
const search = document.getElementById("search");
let hits = [], at = 0;
function find() {
  const asked = search.value.trim().toLowerCase();
  hits = asked ? boxes.filter((box) => (box.dataset.name + " " + box.textContent).toLowerCase().includes(asked)) : [];
  hits.sort((a, b) => b.dataset.name.toLowerCase().startsWith(asked) - a.dataset.name.toLowerCase().startsWith(asked));
  for (const box of boxes) box.classList.toggle("hit", hits.includes(box));
  at = 0;
  next(0);
}
function next(step) {
  document.getElementById("found").textContent = search.value ? (hits.length ? `${(at = (at + step + hits.length) % hits.length) + 1} of ${hits.length}` : "none") : "";
  if (hits.length) { const most = Math.max(drawing.clientWidth, 300); if (view[2] > most) zoom(most / view[2]); centre(hits[at]); choose(hits[at]); }
}
search.addEventListener("input", find);
search.addEventListener("keydown", (event) => { if (event.key === "Enter") next(event.shiftKey ? -1 : 1); });

// ---- the table ----
const table = document.getElementById("table"), heads = [...table.tHead.rows[0].cells];
heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
  const down = head.ariaSort === "ascending", last = column === heads.length - 1;
  const value = (row) => last ? parseFloat(row.cells[column].firstChild.style.width) : (isNaN(parseFloat(row.cells[column].textContent)) ? row.cells[column].textContent : parseFloat(row.cells[column].textContent));
  const rows = [...table.tBodies[0].rows].sort((a, b) => { const [x, y] = [value(a), value(b)]; return (x > y) - (x < y); });
  table.tBodies[0].append(...(down ? rows.reverse() : rows));
  for (const each of heads) each.removeAttribute("aria-sort");
  head.ariaSort = down ? "descending" : "ascending";
}));
table.tBodies[0].addEventListener("click", (event) => {
  const name = event.target.closest("tr").dataset.name, box = boxes.find((each) => each.dataset.name === name && each.dataset.id.startsWith("1/")) || boxes.find((each) => each.dataset.name === name);
  if (box) { centre(box); choose(box); document.getElementById("network").scrollIntoView({ behavior: "smooth" }); }
});

// ---- the data ----
const file = (text, type) => URL.createObjectURL(new Blob([text], { type }));
document.getElementById("download").href = file(document.getElementById("measured").textContent, "application/json");
for (const link of document.querySelectorAll("a.part")) link.href = file(JSON.stringify(measured[link.dataset.part], null, 1), "application/json");
document.getElementById("picture").href = file(svg.outerHTML, "image/svg+xml");
fitted();
