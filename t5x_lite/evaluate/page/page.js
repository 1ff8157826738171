// Draws the panels of a report as SVG. Dragging over a panel zooms all of them; a double click shows all tokens again.
"use strict";
(() => {
  const report = JSON.parse(document.getElementById("report").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const WIDTH = 640;
  const HEIGHT = 300;
  const EDGE = { left: 64, right: 12, top: 10, bottom: 34 };
  const MARKER = 4; // radius of the largest point
  const COLORS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#7f7f7f"];
  const hiddenRuns = new Set();
  let range = null; // the tokens that are shown; null shows all

  const color = (number) => COLORS[number % COLORS.length];

  function element(name, attributes, parent, text) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }

  function html(name, className, parent, text) {
    const node = document.createElement(name);
    node.className = className;
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }

  function format(value) {
    const size = Math.abs(value);
    for (const [limit, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
      if (size >= limit) return `${+(value / limit).toPrecision(4)}${unit}`;
    }
    return size !== 0 && size < 1e-3 ? value.toExponential(2) : `${+value.toPrecision(4)}`;
  }

  // Round numbers between two ends, about `count` of them.
  function linearTicks(low, high, count) {
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
    const ticks = [];
    for (let number = Math.ceil(low / step); number * step <= high * (1 + 1e-12); number++) ticks.push(number * step);
    return ticks;
  }

  function logTicks(low, high) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const factor of [1, 2, 5]) {
        const tick = factor * 10 ** power;
        if (tick >= low && tick <= high) ticks.push(tick);
      }
    }
    return ticks.length > 9 ? ticks.filter((tick) => Number.isInteger(Math.round(Math.log10(tick) * 1e9) / 1e9)) : ticks;
  }

  const shownCurves = (panel) => panel.curves.filter((curve) => !hiddenRuns.has(curve.run));

  function tokensOf(panels) {
    let low = Infinity;
    let high = -Infinity;
    for (const panel of panels) {
      for (const curve of panel.curves) {
        for (const x of curve.x) {
          low = Math.min(low, x);
          high = Math.max(high, x);
        }
      }
      for (const interval of panel.intervals) high = Math.max(high, interval[1]);
    }
    return low < high ? [low, high] : [low - 1, low + 1];
  }

  // The values that are visible. Single steps do not count where there is a smoothed curve: outliers would hide it.
  function valuesOf(panel, view, isLog) {
    if (panel.stacked) return [0, 1];
    const curves = shownCurves(panel);
    const counted = curves.filter((curve) => curve.style !== "faint");
    const values = [];
    for (const curve of counted.length ? counted : curves) {
      curve.y.forEach((y, number) => {
        const isInside = curve.x[number] >= view[0] && curve.x[number] <= view[1];
        if (y !== null && isInside && (!isLog || y > 0)) values.push(y);
      });
    }
    for (const interval of panel.intervals) {
      const isInside = interval[1] >= view[0] && interval[1] <= view[1];
      if (isInside && !hiddenRuns.has(interval[0])) values.push(interval[3], interval[4]);
    }
    if (!values.length) return isLog ? [0.1, 1] : [0, 1];
    let low = Infinity;
    let high = -Infinity;
    for (const value of values) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    if (isLog) return low < high ? [low / 1.05, high * 1.05] : [low / 2, high * 2];
    const space = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
    return [low - space, high + space];
  }

  function scales(panel, isLog) {
    const view = range ?? tokensOf(report.panels);
    const values = valuesOf(panel, view, isLog);
    const map = isLog ? Math.log : (value) => value;
    const [low, high] = values.map(map);
    const width = WIDTH - EDGE.left - EDGE.right;
    const height = HEIGHT - EDGE.top - EDGE.bottom;
    return {
      view,
      values,
      x: (tokens) => EDGE.left + ((tokens - view[0]) / (view[1] - view[0])) * width,
      y: (value) => EDGE.top + (1 - (map(value) - low) / (high - low)) * height,
      tokens: (x) => view[0] + ((x - EDGE.left) / width) * (view[1] - view[0]),
    };
  }

  function path(curve, scale, isLog) {
    let text = "";
    let isDrawing = false;
    curve.y.forEach((y, number) => {
      if (y === null || (isLog && y <= 0)) {
        isDrawing = false;
        return;
      }
      text += `${isDrawing ? "L" : "M"}${scale.x(curve.x[number]).toFixed(1)} ${scale.y(y).toFixed(1)}`;
      isDrawing = true;
    });
    return text;
  }

  function drawCurve(curve, scale, isLog, parent) {
    const stroke = { fill: "none", stroke: color(curve.run), "stroke-width": 1.6 };
    if (curve.style === "faint") Object.assign(stroke, { "stroke-width": 0.8, opacity: 0.3 });
    if (curve.style === "points") stroke["stroke-dasharray"] = "4 3";
    element("path", { ...stroke, d: path(curve, scale, isLog) }, parent);
    if (curve.style !== "points") return;
    curve.y.forEach((y, number) => {
      if (y === null || (isLog && y <= 0)) return;
      element("circle", { cx: scale.x(curve.x[number]), cy: scale.y(y), r: 3.2, fill: color(curve.run), stroke: "#000" }, parent);
    });
  }

  function drawStack(panel, scale, parent) {
    if (!panel.curves.length) return;
    let below = panel.curves[0].y.map(() => 0);
    panel.curves.forEach((curve, number) => {
      const above = curve.y.map((y, point) => below[point] + (y ?? 0));
      const corner = (values) => (x, point) => `${scale.x(x).toFixed(1)} ${scale.y(values[point]).toFixed(1)}`;
      const upper = curve.x.map(corner(above));
      const lower = curve.x.map(corner(below)).reverse();
      const band = element("path", { d: `M${[...upper, ...lower].join("L")}Z`, fill: color(number), opacity: 0.75 }, parent);
      element("title", {}, band, curve.name);
      below = above;
    });
  }

  function drawAxes(panel, scale, isLog, svg) {
    const [low, high] = scale.values;
    const bottom = HEIGHT - EDGE.bottom;
    for (const tick of linearTicks(scale.view[0], scale.view[1], 6)) {
      const x = scale.x(tick);
      element("line", { x1: x, x2: x, y1: EDGE.top, y2: bottom, class: "grid" }, svg);
      element("text", { x, y: bottom + 14, "text-anchor": "middle" }, svg, format(tick));
    }
    for (const tick of isLog ? logTicks(low, high) : linearTicks(low, high, 5)) {
      const y = scale.y(tick);
      element("line", { x1: EDGE.left, x2: WIDTH - EDGE.right, y1: y, y2: y, class: "grid" }, svg);
      element("text", { x: EDGE.left - 6, y: y + 4, "text-anchor": "end" }, svg, format(tick));
    }
    element("text", { x: WIDTH / 2, y: HEIGHT - 4, "text-anchor": "middle" }, svg, "tokens");
  }

  function draw(chart) {
    const { panel, svg, isLog } = chart;
    svg.replaceChildren();
    const scale = scales(panel, isLog);
    chart.scale = scale;
    drawAxes(panel, scale, isLog, svg);
    const id = `clip-${chart.number}`;
    const clip = element("clipPath", { id }, svg);
    const size = { width: WIDTH - EDGE.left - EDGE.right, height: HEIGHT - EDGE.top - EDGE.bottom };
    // Points at the ends of the axes are drawn whole.
    const rim = { x: EDGE.left - MARKER, y: EDGE.top - MARKER, width: size.width + 2 * MARKER, height: size.height + 2 * MARKER };
    element("rect", rim, clip);
    const plot = element("g", { "clip-path": `url(#${id})` }, svg);
    if (panel.stacked) drawStack(panel, scale, plot);
    else for (const curve of shownCurves(panel)) drawCurve(curve, scale, isLog, plot);
    for (const [run, tokens, value, low, high] of panel.intervals) {
      if (hiddenRuns.has(run)) continue;
      const x = scale.x(tokens);
      element("line", { x1: x, x2: x, y1: scale.y(low), y2: scale.y(high), stroke: color(run), "stroke-width": 2 }, plot);
      const diamond = element("circle", { cx: x, cy: scale.y(value), r: 4, fill: color(run) }, plot);
      element("title", {}, diamond, `forecast of the last tenth's mean: ${format(value)} (${format(low)} to ${format(high)})`);
    }
    for (const [tokens, name] of panel.marks) {
      const x = scale.x(tokens);
      element("line", { x1: x, x2: x, y1: EDGE.top, y2: HEIGHT - EDGE.bottom, class: "mark" }, plot);
      element("text", { x: x + 4, y: EDGE.top + 12 }, plot, name);
    }
  }

  function nearestPoint(curve, tokens) {
    let first = 0;
    let last = curve.x.length - 1;
    while (last - first > 1) {
      const middle = (first + last) >> 1;
      if (curve.x[middle] < tokens) first = middle;
      else last = middle;
    }
    return tokens - curve.x[first] < curve.x[last] - tokens ? first : last;
  }

  function showValues(chart, tokens) {
    const rows = [`${format(tokens)} tokens`];
    for (const curve of shownCurves(chart.panel)) {
      if (curve.style === "faint" || !curve.x.length) continue;
      const y = curve.y[nearestPoint(curve, tokens)];
      if (y !== null) rows.push(`${curve.name}  ${format(y)}`);
    }
    chart.values.textContent = rows.slice(0, 12).join("\n");
  }

  function pointerX(chart, event) {
    const box = chart.svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * WIDTH;
    return Math.min(Math.max(x, EDGE.left), WIDTH - EDGE.right);
  }

  function addZoom(chart) {
    let start = null;
    let selection = null;
    chart.svg.addEventListener("pointerdown", (event) => {
      start = pointerX(chart, event);
      selection = element("rect", { y: EDGE.top, height: HEIGHT - EDGE.top - EDGE.bottom, class: "selection" }, chart.svg);
    });
    chart.svg.addEventListener("pointermove", (event) => {
      const x = pointerX(chart, event);
      showValues(chart, chart.scale.tokens(x));
      if (start === null) return;
      selection.setAttribute("x", Math.min(start, x));
      selection.setAttribute("width", Math.abs(x - start));
    });
    window.addEventListener("pointerup", (event) => {
      if (start === null) return;
      const ends = [start, pointerX(chart, event)].sort((a, b) => a - b);
      start = null;
      selection.remove();
      if (ends[1] - ends[0] > 4) setRange(ends.map(chart.scale.tokens));
    });
    chart.svg.addEventListener("pointerleave", () => (chart.values.textContent = ""));
    chart.svg.addEventListener("dblclick", () => setRange(null));
  }

  function addChart(panel, number) {
    const figure = html("figure", "panel", document.getElementById("panels"));
    const caption = html("figcaption", "", figure, panel.title);
    const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": panel.title }, figure);
    const chart = { panel, number, svg, isLog: panel.scale === "log", values: html("pre", "values", figure) };
    if (!panel.stacked) {
      const button = html("button", "scale", caption, chart.isLog ? "linear" : "log");
      button.type = "button";
      button.addEventListener("click", () => {
        chart.isLog = !chart.isLog;
        button.textContent = chart.isLog ? "linear" : "log";
        draw(chart);
      });
    }
    addZoom(chart);
    return chart;
  }

  function addLegend(charts) {
    const legend = document.getElementById("legend");
    report.runs.forEach((name, run) => {
      const label = html("label", "run", legend);
      const box = html("input", "", label);
      box.type = "checkbox";
      box.checked = true;
      html("span", "swatch", label).style.background = color(run);
      label.append(name);
      box.addEventListener("change", () => {
        if (box.checked) hiddenRuns.delete(run);
        else hiddenRuns.add(run);
        charts.forEach(draw);
      });
    });
  }

  // One square for each head of a layer: a row is a token, a column is a token that it attends to.
  function addAttention(map) {
    const section = document.getElementById("attention");
    html("h2", "", section, `Attention of ${map.run} at step ${map.step}`);
    const label = html("label", "", section, "layer ");
    const choice = html("select", "", label);
    const heads = html("div", "heads", section);
    const hint = html("p", "", section, map.prompt);
    const weights = Uint8Array.from(atob(map.weights), (letter) => letter.charCodeAt(0));
    const size = map.tokens.length;
    for (let layer = 0; layer < map.layers; layer++) html("option", "", choice, `${layer + 1}`).value = layer;

    function addHead(head) {
      const first = (Number(choice.value) * map.heads + head) * size * size;
      const figure = html("figure", "", heads);
      html("figcaption", "", figure, `head ${head + 1}`);
      const canvas = html("canvas", "", figure);
      canvas.width = canvas.height = size;
      const context = canvas.getContext("2d");
      const image = context.createImageData(size, size);
      for (let pixel = 0; pixel < size * size; pixel++) image.data.set([31, 119, 180, weights[first + pixel]], 4 * pixel);
      context.putImageData(image, 0, 0);
      canvas.addEventListener("pointermove", (event) => {
        const column = Math.min(Math.floor((event.offsetX / canvas.clientWidth) * size), size - 1);
        const row = Math.min(Math.floor((event.offsetY / canvas.clientHeight) * size), size - 1);
        const weight = weights[first + row * size + column] / 255;
        hint.textContent = `head ${head + 1}: “${map.tokens[row]}” attends to “${map.tokens[column]}” with ${weight.toFixed(2)}`;
      });
    }

    function show() {
      heads.replaceChildren();
      for (let head = 0; head < map.heads; head++) addHead(head);
    }
    choice.addEventListener("change", show);
    show();
  }

  const charts = report.panels.map(addChart);
  function setRange(newRange) {
    range = newRange;
    charts.forEach(draw);
  }
  document.getElementById("reset").addEventListener("click", () => setRange(null));
  addLegend(charts);
  charts.forEach(draw);
  report.attention.forEach(addAttention);
})();
