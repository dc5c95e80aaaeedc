// Curves and histograms as SVG. A chart is an image with a sentence for screen readers, and a
// readout of the step under the pointer.
import { t } from "./texts.js";
import { count, make, number } from "./parts.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 420, HEIGHT = 170, LEFT = 58, BOTTOM = 22, TOP = 8, RIGHT = 8, MOST_POINTS = 600;

function shape(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Leave out points that a screen has no column for; the first and the last stay. */
function thin(points) {
  if (points.length <= MOST_POINTS) return points;
  const every = Math.ceil(points.length / MOST_POINTS);
  return points.filter((_, index) => index % every === 0 || index === points.length - 1);
}

function ticks(low, high) {
  const step = 10 ** Math.floor(Math.log10((high - low) / 3 || 1));
  const wide = [1, 2, 5, 10].map((factor) => factor * step).find((each) => (high - low) / each <= 4) || step * 10;
  const found = [];
  for (let value = Math.ceil(low / wide) * wide; value <= high + wide * 1e-6; value += wide) found.push(value);
  return found;
}

/** 1, 2, 5, 10, 20, ...; of a large range only powers of ten. */
function logTicks(low, high) {
  const powers = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) powers.push(10 ** power);
  const within = (all) => all.filter((value) => value >= low && value <= high);
  const fine = within(powers.flatMap((power) => [power, 2 * power, 5 * power]));
  return fine.length <= 6 ? fine : within(powers);
}

/** Draw curves: [{name, points: [[step, value], ...]}]; null where there is nothing to draw. */
export function lineChart(title, series) {
  const curves = series.map((each, color) => ({ ...each, color, points: thin(each.points.filter(([, y]) => Number.isFinite(y))) }))
    .filter((each) => each.points.length);
  if (!curves.length) return null;
  const all = curves.flatMap((each) => each.points);
  const xs = all.map(([x]) => x), values = all.map(([, y]) => y).sort((a, b) => a - b);
  const isLog = values[0] > 0 && values[values.length - 1] / values[0] > 50;
  const scale = isLog ? Math.log10 : (y) => y;
  const x0 = Math.min(...xs), x1 = Math.max(...xs, x0 + 1);
  let y0 = scale(values[0]), y1 = scale(values[values.length - 1]);
  if (y1 - y0 < 1e-12) { const room = Math.abs(y0) * 0.05 || 0.5; y0 -= room; y1 += room; }
  const px = (x) => LEFT + ((x - x0) / (x1 - x0)) * (WIDTH - LEFT - RIGHT);
  const py = (y) => TOP + (1 - (scale(y) - y0) / (y1 - y0)) * (HEIGHT - TOP - BOTTOM);
  const marks = [];
  for (const y of isLog ? logTicks(10 ** y0, 10 ** y1) : ticks(y0, y1)) {
    marks.push(shape("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: py(y), y2: py(y) }));
    marks.push(shape("text", { class: "tick", x: LEFT - 6, y: py(y) + 4, "text-anchor": "end" }, number(y, 3)));
  }
  for (const value of ticks(x0, x1)) {
    marks.push(shape("text", { class: "tick", x: px(value), y: HEIGHT - 6, "text-anchor": "middle" }, count(Math.round(value))));
  }
  const lines = curves.map(({ points, color }) => {
    const path = points.map(([x, y], index) => `${index ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("");
    return points.length > 1
      ? shape("path", { class: `curve c${color % 8}`, d: path })
      : shape("circle", { class: `dot c${color % 8}`, cx: px(points[0][0]), cy: py(points[0][1]), r: 4 });
  });
  const said = curves.map(({ name, points }) => `${name}: ${number(points[0][1])} → ${number(points[points.length - 1][1])}`).join("; ");
  const pointer = shape("line", { class: "pointer", y1: TOP, y2: HEIGHT - BOTTOM, x1: -9, x2: -9 });
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title} ${t("chartOf")}. ${said}` }, ...marks, ...lines, pointer);
  const readout = make("output", { class: "readout" });
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = x0 + (((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * (x1 - x0);
    const near = curves.map(({ name, points }) => [name, points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a))]);
    pointer.setAttribute("x1", px(near[0][1][0]));
    pointer.setAttribute("x2", px(near[0][1][0]));
    readout.textContent = `${t("step")} ${count(near[0][1][0])}: ${near.map(([name, [, y]]) => `${name} ${number(y)}`).join(", ")}`;
  });
  const legend = curves.map(({ name, color }) => make("span", { class: `legend c${color % 8}` }, name));
  return make("figure", { class: "chart" }, make("figcaption", {}, make("strong", {}, title), series.length > 1 ? legend : null, readout), svg);
}

/** Draw bars: [{label, value}]; of many, only some have room for their label. */
export function histogram(title, bars) {
  const most = Math.max(...bars.map((bar) => bar.value), 1), width = (WIDTH - LEFT) / bars.length;
  const every = Math.ceil(bars.length / 7), isNamed = (index) => (bars.length - 1 - index) % every === 0;
  const shapes = bars.flatMap(({ label, value }, index) => {
    const height = (value / most) * (HEIGHT - TOP - BOTTOM - 14), x = LEFT + index * width;
    return [
      shape("rect", { class: "bar", x: x + 2, y: HEIGHT - BOTTOM - height, width: Math.max(width - 4, 1), height }),
      shape("text", { class: "tick", x: x + width / 2, y: HEIGHT - BOTTOM - height - 4, "text-anchor": "middle" }, value && isNamed(index) ? count(value) : ""),
      shape("text", { class: "tick", x: x + width / 2, y: HEIGHT - 6, "text-anchor": "middle" }, isNamed(index) ? label : ""),
    ];
  });
  const said = bars.map(({ label, value }) => `${label}: ${count(value)}`).join("; ");
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}. ${said}` }, ...shapes);
  return make("figure", { class: "chart" }, make("figcaption", {}, make("strong", {}, title)), svg);
}
