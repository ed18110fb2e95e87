"use strict";
// The report's table and viewer. A volume is (X, Y, Z) with x to the patient's left, y to
// posterior, z to inferior: slices are drawn as radiologists hang them.

const report = JSON.parse(document.getElementById("report").textContent);
const element = (id) => document.getElementById(id);
const PLANES = [
  { name: "axial", across: 2, column: 0, row: 1, sides: "RLAP" }, // left, right, top, bottom
  { name: "coronal", across: 1, column: 0, row: 2, sides: "RLSI" },
  { name: "sagittal", across: 0, column: 1, row: 2, sides: "APSI" },
];
const PRESETS = { "soft tissue": [-160, 240], liver: [-40, 180], lung: [-1000, 200],
  bone: [-300, 1200], wide: [-1000, 1000] };
const DIMMED = 0.62; // how much of a surface's brightness its slope decides

const state = { open: null, preset: "soft tissue", opacity: 0.5, layer: 0, hidden: new Set(),
  at: [0, 0, 0], turn: [0.3, 0.2], gate: -1 };

// ---- reading a case --------------------------------------------------------------------------

const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

async function inflate(text) {
  const stream = new Blob([bytesOf(text)]).stream()
    .pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function decodeScan(scan, [X, Y, Z]) {
  const blob = new Blob([bytesOf(scan.image)], { type: "image/webp" });
  const picture = await createImageBitmap(blob);
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const volume = new Uint8Array(X * Y * Z);
  for (let z = 0; z < Z; z += 1) {
    const left = (z % scan.columns) * X, top = Math.floor(z / scan.columns) * Y;
    const { data } = context.getImageData(left, top, X, Y);
    for (let i = 0; i < X * Y; i += 1) volume[z * X * Y + i] = data[4 * i];
  }
  return volume;
}

async function readCase(number) {
  const found = JSON.parse(element(`case-${number}`).textContent);
  const { gates: packed, shape: gateShape } = found.attention;
  const scan = await decodeScan(found.scan, found.shape);
  const layers = await Promise.all(found.layers.map((layer) => inflate(layer.data)));
  const gates = await Promise.all(packed.map(inflate)); // on a grid of their own
  const names = found.layers.map((layer) => layer.name);
  const { shape, spacing } = found;
  return { number, shape, spacing, scan, gates, gateShape, layers, names,
    ...frame(shape, spacing, layers) };
}

// The middle (voxels) and the diagonal (mm) of the box around all labels, for the view in 3D.
function frame(shape, spacing, layers) {
  const low = [...shape], high = [-1, -1, -1], [X, Y] = shape;
  layers.forEach((labels) => labels.forEach((value, i) => {
    if (!value) return;
    [i % X, Math.floor(i / X) % Y, Math.floor(i / (X * Y))].forEach((at, axis) => {
      low[axis] = Math.min(low[axis], at);
      high[axis] = Math.max(high[axis], at + 1);
    });
  }));
  const whole = high[0] < 0; // no label at all
  const ends = shape.map((count, axis) => (whole ? [0, count] : [low[axis], high[axis]]));
  const middle = ends.map(([from, to]) => (from + to) / 2);
  return { middle, reach: Math.hypot(...ends.map(([from, to], axis) => (to - from) * spacing[axis])) };
}

// ---- drawing ---------------------------------------------------------------------------------

function greyscale() { // stored value -> shade under the chosen window
  const [low, high] = PRESETS[state.preset];
  return report.hu.map((hu) => Math.max(0, Math.min(255, (255 * (hu - low)) / (high - low))));
}

const strides = ([X, Y]) => [1, X, X * Y];

// Offset in a gate's array, which is coarser, of each position along one axis of the scan.
function gateOffsets(axis) {
  const { shape, gateShape } = state.open, step = strides(gateShape)[axis];
  return Array.from({ length: shape[axis] },
    (_, at) => step * Math.floor(((at + 0.5) * gateShape[axis]) / shape[axis]));
}

function drawPlane(canvas, plane) {
  const { shape, scan, gates, layers } = state.open, step = strides(shape);
  const width = shape[plane.column], height = shape[plane.row];
  const start = state.at[plane.across] * step[plane.across];
  const shades = greyscale(), image = new ImageData(width, height), labels = layers[state.layer];
  const gate = gates[state.gate], [across, columns, rows] =
    gate ? [plane.across, plane.column, plane.row].map(gateOffsets) : [];
  for (let row = 0; row < height; row += 1) {
    for (let column = 0; column < width; column += 1) {
      const from = start + column * step[plane.column] + row * step[plane.row];
      const to = 4 * (row * width + column), grey = shades[scan[from]];
      let colour = [grey, grey, grey], weight = 0;
      if (gate) {
        const open = gate[across[state.at[plane.across]] + columns[column] + rows[row]] / 255;
        colour = [255, 140, 0];
        weight = state.opacity * open;
      } else if (labels && labels[from] && !state.hidden.has(labels[from])) {
        colour = report.colours[labels[from]];
        weight = state.opacity;
      }
      for (let part = 0; part < 3; part += 1) {
        image.data[to + part] = grey + weight * (colour[part] - grey);
      }
      image.data[to + 3] = 255;
    }
  }
  const small = new OffscreenCanvas(width, height);
  small.getContext("2d").putImageData(image, 0, 0);
  const context = canvas.getContext("2d");
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  drawCross(context, canvas, plane, width, height);
}

function drawCross(context, canvas, plane, width, height) {
  const x = ((state.at[plane.column] + 0.5) * canvas.width) / width;
  const y = ((state.at[plane.row] + 0.5) * canvas.height) / height;
  context.strokeStyle = "rgba(120, 200, 255, 0.55)";
  context.beginPath();
  context.moveTo(x, 0); context.lineTo(x, canvas.height);
  context.moveTo(0, y); context.lineTo(canvas.width, y);
  context.stroke();
  context.fillStyle = "#ddd";
  [context.shadowColor, context.shadowBlur] = ["#000", 4];
  context.font = "16px system-ui, sans-serif";
  [context.textAlign, context.textBaseline] = ["center", "middle"];
  const [middle, centre] = [canvas.width / 2, canvas.height / 2];
  const places = [[12, centre], [canvas.width - 12, centre], [middle, 12], [middle, canvas.height - 12]];
  places.forEach((place, n) => context.fillText(plane.sides[n], ...place));
  context.shadowBlur = 0;
}

// The nearest labelled voxel along each pixel's ray.
function drawSurfaces(canvas) {
  const { shape, spacing, layers } = state.open, labels = layers[state.layer];
  const size = 180, image = new ImageData(size, size), step = strides(shape);
  const centre = state.open.middle.map((at, axis) => at * spacing[axis]);
  const reach = state.open.reach, scale = reach / size;
  const stride = Math.min(...spacing) * 0.9;
  const [yaw, pitch] = state.turn, [cy, sy] = [Math.cos(yaw), Math.sin(yaw)];
  const [cp, sp] = [Math.cos(pitch), Math.sin(pitch)];
  const right = [cy, sy, 0], down = [-sy * sp, cy * sp, cp], into = [-sy * cp, cy * cp, -sp];
  const light = right.map((part, n) => -(0.4 * part + 0.6 * down[n] + into[n]) / 1.24);
  const box = spacing.map((mm) => Math.max(1, Math.round((3 * Math.min(...spacing)) / mm)));
  for (let v = 0; v < size; v += 1) {
    for (let u = 0; u < size; u += 1) {
      const a = (u - size / 2) * scale, b = (v - size / 2) * scale, to = 4 * (v * size + u);
      image.data[to + 3] = 255;
      for (let t = -reach / 2; t < reach / 2; t += stride) {
        const x = Math.floor((centre[0] + a * right[0] + b * down[0] + t * into[0]) / spacing[0]);
        const y = Math.floor((centre[1] + a * right[1] + b * down[1] + t * into[1]) / spacing[1]);
        const z = Math.floor((centre[2] + a * right[2] + b * down[2] + t * into[2]) / spacing[2]);
        if (x < 0 || y < 0 || z < 0 || x >= shape[0] || y >= shape[1] || z >= shape[2]) continue;
        const value = labels[x + y * step[1] + z * step[2]];
        if (value && !state.hidden.has(value)) {
          const shade = 1 - DIMMED + DIMMED * facing([x, y, z], value, box, light);
          report.colours[value].forEach((part, n) => { image.data[to + n] = part * shade; });
          break;
        }
      }
    }
  }
  const small = new OffscreenCanvas(size, size);
  small.getContext("2d").putImageData(image, 0, 0);
  canvas.getContext("2d").drawImage(small, 0, 0, canvas.width, canvas.height);
}

// How far the surface at a voxel faces the light, in [0, 1]: its normal leads away from the mean of
// the label's voxels nearby, which is smooth where single voxels are steps.
function facing([x, y, z], value, box, light) {
  const { shape, spacing, layers } = state.open, labels = layers[state.layer], step = strides(shape);
  let dx = 0, dy = 0, dz = 0;
  for (let k = Math.max(z - box[2], 0); k <= Math.min(z + box[2], shape[2] - 1); k += 1) {
    for (let j = Math.max(y - box[1], 0); j <= Math.min(y + box[1], shape[1] - 1); j += 1) {
      for (let i = Math.max(x - box[0], 0); i <= Math.min(x + box[0], shape[0] - 1); i += 1) {
        if (labels[i + j * step[1] + k * step[2]] !== value) continue;
        dx += i - x; dy += j - y; dz += k - z;
      }
    }
  }
  const normal = [-dx * spacing[0], -dy * spacing[1], -dz * spacing[2]];
  const length = Math.hypot(...normal) || 1;
  return Math.max(0, normal.reduce((sum, part, n) => sum + part * light[n], 0) / length);
}

function draw() {
  drawPlanes();
  drawSurfaces(element("canvas-surfaces"));
}

function drawPlanes() {
  PLANES.forEach((plane) => {
    const canvas = element(`canvas-${plane.name}`);
    drawPlane(canvas, plane);
    canvas.ariaValueNow = state.at[plane.across] + 1;
  });
  const millimetres = state.at.map((n, axis) => Math.round(n * state.open.spacing[axis]));
  const [z, y, x] = [state.at[2], state.at[1], state.at[0]];
  element("position").textContent = `Axial ${z + 1} of ${state.open.shape[2]}, coronal ${y + 1} of ` +
    `${state.open.shape[1]}, sagittal ${x + 1} of ${state.open.shape[0]} (${millimetres.join(", ")}` +
    " mm from the right, anterior and superior faces)";
}

// ---- controls --------------------------------------------------------------------------------

function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  Object.entries(attributes).forEach(([name, value]) => {
    if (name in made) made[name] = value; else made.setAttribute(name, value);
  });
  made.append(...children);
  return made;
}

function choice(legend, options, chosen, onchange) {
  const select = make("select", { ariaLabel: legend });
  options.forEach((name, n) => select.append(make("option", { value: n }, name)));
  select.value = chosen;
  select.onchange = () => { onchange(Number(select.value)); draw(); };
  return make("label", {}, `${legend} `, select);
}

function buildControls() {
  const presets = Object.keys(PRESETS), controls = [];
  controls.push(choice("window", presets, presets.indexOf(state.preset),
    (n) => { state.preset = presets[n]; }));
  controls.push(choice("labels of", state.open.names, state.layer, (n) => { state.layer = n; }));
  const slider = make("input", { type: "range", min: 0, max: 1, step: 0.05, value: state.opacity,
    id: "opacity" });
  slider.oninput = () => { state.opacity = Number(slider.value); drawPlanes(); };
  controls.push(make("label", {}, "opacity ", slider));
  const shown = make("fieldset", {}, make("legend", {}, "show"));
  Object.entries(report.labels).forEach(([value, name]) => {
    const box = make("input", { type: "checkbox", checked: !state.hidden.has(Number(value)) });
    box.onchange = () => {
      state.hidden[box.checked ? "delete" : "add"](Number(value));
      draw();
    };
    const swatch = make("span", { className: "swatch" });
    swatch.style.background = `rgb(${report.colours[value].join(" ")})`;
    shown.append(make("label", {}, box, " ", swatch, name));
  });
  controls.push(shown);
  if (state.open.gates.length) { // the finest level's come first
    const names = ["none", ...state.open.gates.map((_, n) => `gate ${n + 1}`)];
    controls.push(choice("attention", names, state.gate + 1, (n) => { state.gate = n - 1; }));
  }
  element("controls").replaceChildren(...controls);
}

function move(axis, by) {
  const last = state.open.shape[axis] - 1;
  state.at[axis] = Math.max(0, Math.min(last, state.at[axis] + by));
  drawPlanes();
}

function buildPlane(plane) {
  const { shape, spacing } = state.open;
  const width = shape[plane.column] * spacing[plane.column];
  const height = shape[plane.row] * spacing[plane.row];
  const canvas = make("canvas", { id: `canvas-${plane.name}`, tabIndex: 0, width: 480,
    height: Math.round((480 * height) / width), role: "slider", ariaOrientation: "vertical",
    ariaValueMin: 1, ariaValueMax: shape[plane.across], ariaLabel: `${plane.name} slice` });
  canvas.onwheel = (event) => { event.preventDefault(); move(plane.across, Math.sign(event.deltaY)); };
  canvas.onkeydown = (event) => {
    const by = { ArrowUp: -1, ArrowDown: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (by) { event.preventDefault(); move(plane.across, by); }
  };
  canvas.onpointerdown = canvas.onpointermove = (event) => {
    if (!event.buttons) return;
    const box = canvas.getBoundingClientRect();
    const share = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    [plane.column, plane.row].forEach((axis, n) => {
      state.at[axis] = Math.max(0, Math.min(shape[axis] - 1, Math.floor(share[n] * shape[axis])));
    });
    drawPlanes();
  };
  return make("figure", {}, canvas, make("figcaption", {}, plane.name));
}

function buildSurfaces() {
  const canvas = make("canvas", { id: "canvas-surfaces", tabIndex: 0, width: 480, height: 480,
    role: "application", ariaLabel: "surfaces in 3D; arrow keys turn them" });
  const turn = (yaw, pitch) => {
    state.turn = [state.turn[0] + yaw, Math.max(-1.5, Math.min(1.5, state.turn[1] + pitch))];
    drawSurfaces(canvas);
  };
  canvas.onpointermove = (event) => {
    if (event.buttons) turn(-event.movementX / 80, event.movementY / 80);
  };
  canvas.onkeydown = (event) => {
    const by = { ArrowLeft: [0.15, 0], ArrowRight: [-0.15, 0], ArrowUp: [0, -0.15],
      ArrowDown: [0, 0.15] }[event.key];
    if (by) { event.preventDefault(); turn(...by); }
  };
  return make("figure", {}, canvas, make("figcaption", {}, "surfaces"));
}

// The slices with most labelled voxels: where there is something to see.
function middleOfLabels({ shape, layers }) {
  const [X, Y, Z] = shape, labels = layers[state.layer], counts = [X, Y, Z].map((n) => new Array(n).fill(0));
  for (let i = 0; labels && i < labels.length; i += 1) {
    if (labels[i]) {
      counts[0][i % X] += 1; counts[1][Math.floor(i / X) % Y] += 1; counts[2][Math.floor(i / (X * Y))] += 1;
    }
  }
  return counts.map((count, axis) => {
    const best = count.indexOf(Math.max(...count));
    return count[best] ? best : Math.floor(shape[axis] / 2);
  });
}

async function open(number) {
  const facts = report.cases[number];
  state.open = await readCase(number);
  state.layer = Math.min(state.layer, Math.max(0, state.open.layers.length - 1));
  state.gate = Math.min(state.gate, state.open.gates.length - 1);
  state.at = middleOfLabels(state.open);
  element("viewer").hidden = false;
  element("viewer-heading").textContent = facts.id;
  element("facts").textContent = facts.facts;
  element("warnings").replaceChildren(...facts.warnings.map((line) => make("li", {}, line)));
  buildControls();
  element("planes").replaceChildren(...PLANES.map(buildPlane), buildSurfaces());
  draw();
  document.querySelectorAll("#cases tr").forEach((row) => {
    row.classList.toggle("open", row.dataset.number === String(number));
  });
  element("viewer-heading").focus({ preventScroll: true }); // what Tab reaches next is the viewer
  element("viewer").scrollIntoView({ block: "start" });
}

// ---- the table of cases ----------------------------------------------------------------------

function buildTable(sortBy = null, descending = false) {
  const order = report.cases.map((_, number) => number);
  if (sortBy !== null) {
    const value = (n) => (sortBy < 0 ? report.cases[n].id : report.cases[n].values[sortBy]);
    order.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return (x < y ? -1 : x > y ? 1 : 0) * (descending ? -1 : 1);
    });
  }
  const heading = (text, column) => {
    const chosen = sortBy === column;
    const button = make("button", {}, text);
    button.onclick = () => {
      buildTable(column, chosen ? !descending : false);
      element("cases").querySelectorAll("th button")[column + 1].focus();
    };
    const sorted = chosen ? (descending ? "descending" : "ascending") : "none";
    return make("th", { scope: "col", "aria-sort": sorted }, button);
  };
  const head = make("tr", {}, heading("case", -1), ...report.columns.map(heading));
  const rows = order.map((number) => {
    const { id, values, shown, look } = report.cases[number];
    const button = make("button", {}, id);
    button.onclick = () => open(number);
    const cells = shown.map((text, n) => make("td", { className: look.includes(n) ? "look" : "" }, text));
    const row = make("tr", {}, make("td", {}, button), ...cells);
    row.dataset.number = number;
    if (state.open && state.open.number === number) row.classList.add("open");
    return row;
  });
  element("cases").replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
}

// ---- the summary -----------------------------------------------------------------------------

function buildStatistics() {
  const names = ["", "cases", "mean", "95 % interval of the mean", "median", "range"];
  const head = make("tr", {}, ...names.map((name) => make("th", { scope: "col" }, name)));
  const rows = report.statistics.map(([name, ...cells]) => make("tr", {},
    make("th", { scope: "row" }, name), ...cells.map((text) => make("td", {}, text))));
  element("statistics").replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
}

const quantile = (sorted, q) => {
  const at = q * (sorted.length - 1), low = Math.floor(at);
  return sorted[low] + (at - low) * (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]);
};

function svg(tag, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  made.textContent = text;
  return made;
}

// A box plot with a dot for each case: quartiles, whiskers to the extremes.
function boxPlot(column) {
  const values = report.cases.map(({ values: row }) => row[column]).filter((v) => v !== null);
  if (values.length < 2) return null;
  const sorted = [...values].sort((a, b) => a - b), [low, high] = [sorted[0], sorted.at(-1)];
  const x = (value) => 20 + 320 * (high > low ? (value - low) / (high - low) : 0.5);
  const plot = svg("svg", { viewBox: "0 0 360 92", width: 360, height: 92, role: "img",
    "aria-label": `${report.columns[column]} of ${values.length} cases, from ${low} to ${high}` });
  const line = (from, to, y, below) => svg("line", { x1: x(from), x2: x(to), y1: y, y2: below,
    stroke: "currentColor" });
  const [first, middle, third] = [0.25, 0.5, 0.75].map((q) => quantile(sorted, q));
  plot.append(svg("text", { x: 20, y: 16, fill: "currentColor", "font-size": 15 },
    report.columns[column]));
  plot.append(line(low, first, 45, 45), line(third, high, 45, 45));
  plot.append(svg("rect", { x: x(first), y: 34, width: Math.max(1, x(third) - x(first)), height: 22,
    fill: "none", stroke: "currentColor" }), line(middle, middle, 34, 56));
  values.forEach((value, n) => plot.append(svg("circle", { cx: x(value), cy: 41 + (n % 3) * 4, r: 2.5,
    fill: "var(--accent)", "fill-opacity": 0.7 })));
  const shown = report.cases.find(({ values: row }) => row[column] === low).shown[column];
  const most = report.cases.find(({ values: row }) => row[column] === high).shown[column];
  const axis = { y: 82, fill: "currentColor", "font-size": 14 };
  plot.append(svg("text", { ...axis, x: 20 }, shown));
  plot.append(svg("text", { ...axis, x: 340, "text-anchor": "end" }, most));
  return plot;
}

buildStatistics();
element("plots").replaceChildren(...report.columns.map((_, n) => boxPlot(n)).filter(Boolean));
buildTable();
if (report.cases.length === 1) open(0);
