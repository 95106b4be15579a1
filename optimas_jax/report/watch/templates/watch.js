"use strict";
const at = (id) => document.getElementById(id);
const token = document.querySelector("meta[name=token]").content;
const count = (number) => number.toLocaleString("en");
let now = null; // what the run does

const write = (part, text) => {
  if (part.textContent !== text) part.textContent = text;
};

const rows = (part, values, make, fill) => {
  // As many children as values; those that are there stay.
  while (part.children.length > values.length) part.lastElementChild.remove();
  while (part.children.length < values.length) part.append(make());
  values.forEach((value, index) => fill(part.children[index], value));
};

const element = (name, ...children) => {
  const made = document.createElement(name);
  made.append(...children);
  return made;
};

const cellsRow = () => {
  const row = element("tr", ...[0, 1, 2, 3].map((index) => element(index ? "td" : "th")));
  row.firstChild.scope = "row";
  for (const cell of [...row.children].slice(1)) cell.className = "n";
  return row;
};

const drawing = (name, attributes, text = "") => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
};

const drawCurve = (points) => {
  at("curve").toggleAttribute("hidden", !points.length);
  at("no-curve").hidden = points.length > 0;
  if (!points.length) return;
  const [left, right, top, bottom] = [90, 620, 20, 160];
  const scores = points.map(([, score]) => score);
  const [low, high] = [Math.min(...scores), Math.max(...scores)];
  const most = Math.max(points.at(-1)[0], 1);
  const x = (tokens) => left + ((right - left) * tokens) / most;
  const y = (score) => (high > low ? bottom - ((bottom - top) * (score - low)) / (high - low) : (top + bottom) / 2);
  let path = `M ${x(points[0][0])} ${y(points[0][1])}`;
  for (const [tokens, score] of points.slice(1)) path += ` H ${x(tokens)} V ${y(score)}`;
  const [tokens, score] = points.at(-1);
  at("curve").replaceChildren(
    drawing("line", { x1: left, y1: bottom, x2: right, y2: bottom }),
    drawing("line", { x1: left, y1: top, x2: left, y2: bottom }),
    drawing("text", { x: left - 6, y: y(low) + 4, "text-anchor": "end" }, low.toFixed(3)),
    ...(high > low ? [drawing("text", { x: left - 6, y: y(high) + 4, "text-anchor": "end" }, high.toFixed(3))] : []),
    drawing("text", { x: right, y: bottom + 30, "text-anchor": "end" }, `${count(tokens)} tokens`),
    drawing("path", { d: path, "data-points": points.length }),
    drawing("circle", { cx: x(tokens), cy: y(score), r: 4 }),
  );
  write(at("curve-says"), `from ${points[0][1].toFixed(3)} to ${score.toFixed(3)} after ${count(tokens)} tokens`);
};

// The report: a new one is loaded behind the old one, is told what is open there, and takes its place.

let shownVersion = "";
let coming = null;

const takePlace = () => {
  if (!coming) return;
  const hadFocus = document.activeElement && document.activeElement.tagName === "IFRAME";
  for (const old of [...at("frames").children]) if (old !== coming) old.remove();
  coming.classList.remove("coming");
  if (hadFocus) coming.focus();
  coming = null;
};

const showReport = (version) => {
  at("no-report").hidden = version !== "";
  if (version === "" || version === shownVersion || coming) return;
  shownVersion = version;
  coming = element("iframe");
  coming.title = "Report of the run";
  coming.className = "coming";
  coming.setAttribute("sandbox", "allow-scripts");
  coming.src = `report?v=${encodeURIComponent(version)}`;
  const mine = coming;
  setTimeout(() => coming === mine && takePlace(), 10000);
  at("frames").append(coming);
};

addEventListener("message", (event) => {
  const old = [...at("frames").children].find((frame) => frame !== coming);
  if (!coming || !event.data) return;
  if (event.source === coming.contentWindow && event.data.ready) {
    if (old) old.contentWindow.postMessage({ ask: true }, "*");
    else takePlace();
  } else if (old && event.source === old.contentWindow && event.data.state) {
    coming.contentWindow.postMessage({ restore: event.data.state }, "*");
  } else if (event.source === coming.contentWindow && event.data.restored) takePlace();
});

const show = (run) => {
  if (now && now.server !== run.server) {
    location.reload(); // another server has another token
    return;
  }
  now = run;
  document.body.dataset.state = run.state;
  document.title = `${run.state}: ${run.title}`;
  write(at("title"), run.title);
  write(at("says"), run.says);
  write(at("where"), run.where);
  for (const [name, text] of Object.entries(run.cells)) {
    write(at(name), text || "-");
    at(name).parentElement.hidden = !run.id && (text || "-") === "-"; // nothing of a command that has ended
  }
  for (const name of ["pause", "resume", "stop"]) at(name).hidden = !run.can.includes(name);
  rows(at("bars"), run.bars, () => {
    const row = element("div", element("span"), element("progress"), element("span"));
    row.className = "bar";
    return row;
  }, (row, bar) => {
    const [label, progress, steps] = row.children;
    write(label, bar.label);
    progress.max = Math.max(bar.total, 1);
    progress.value = bar.done;
    progress.setAttribute("aria-label", bar.label);
    write(steps, `${bar.done}/${bar.total}`);
  });
  rows(at("problems"), run.problems, () => element("li"), write);
  rows(at("decisions"), run.decisions, () => element("li"), write);
  const bill = run.bill.length ? [...run.bill, { step: "all", ...run.total }] : [];
  rows(at("bill"), bill, cellsRow, (row, one) => {
    const texts = [one.step, count(one.calls), count(one.tokens), one.usd.toFixed(4)];
    texts.forEach((text, index) => write(row.children[index], text));
    row.className = one.step === "all" ? "sum" : "";
  });
  drawCurve(run.curve);
  showReport(run.report);
};

const ask = async (wish) => {
  write(at("answer"), "");
  try {
    const answer = await fetch(`${wish}?id=${encodeURIComponent(now.id)}`, { method: "POST", headers: { "x-optimas-token": token } });
    if (!answer.ok) write(at("answer"), (await answer.json()).error);
  } catch (error) {
    write(at("answer"), "the server does not answer");
  }
};

at("pause").addEventListener("click", () => ask("pause"));
at("resume").addEventListener("click", () => ask("resume"));
at("stop").addEventListener("click", () => {
  const button = at("stop");
  if (button.classList.toggle("sure")) {
    button.textContent = "Stop: sure?";
    setTimeout(() => {
      button.classList.remove("sure");
      button.textContent = "Stop";
    }, 5000);
  } else {
    button.textContent = "Stop";
    ask("stop");
  }
});

const events = new EventSource("events");
events.onmessage = (event) => show(JSON.parse(event.data));
events.onopen = () => (at("lost").hidden = true);
events.onerror = () => (at("lost").hidden = false);
