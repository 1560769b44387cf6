"use strict";
{
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const slider = byId("slider"), exact = byId("exact"), gallery = byId("gallery");
  const cards = gallery ? [...gallery.children].map((element) => ({
    element,
    score: Number(element.dataset.score),
    group: element.dataset.group,
    anomaly: data.groups[element.dataset.group].anomaly,
    outcome: element.dataset.outcome,
    badge: element.querySelector(".outcome"),
  })) : [];
  let threshold = data.threshold;

  // The scale of the histogram's axis: about linear near 0, logarithmic far from it.
  const position = (score) => Math.asinh(score / data.width);
  const scoreAt = (position) => data.width * Math.sinh(position);

  // Rounds and groups digits like Python.
  const percent = new Intl.NumberFormat("en", {
    style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1, roundingMode: "halfEven",
    useGrouping: false,
  });
  const about = data.step > 1 ? "≈ " : "";
  const number = (n) => about + n.toLocaleString("en");
  const plural = (n, word) => `${number(n)} ${word}${n === 1 ? "" : "s"}`;
  const rate = (part, whole) => (whole ? about + percent.format(part / whole) : "–");

  function alarms(group) {
    let low = 0, high = group.scores.length; // descending
    while (low < high) {
      const middle = (low + high) >> 1;
      if (group.scores[middle] >= threshold) low = middle + 1;
      else high = middle;
    }
    return Math.min(low * data.step, group.n);
  }

  function outcome(card) {
    const alarm = card.score >= threshold;
    if (card.anomaly === null) return alarm ? "alarm" : "quiet";
    if (card.anomaly) return alarm ? "found" : "missed";
    return alarm ? "false-alarm" : "passed";
  }

  const isMistake = (card) => card.outcome === "missed" || card.outcome === "false-alarm";
  const mistake = (card) => (isMistake(card) ? Math.abs(card.score - threshold) : -1);
  const orders = {
    highest: (a, b) => b.score - a.score,
    lowest: (a, b) => a.score - b.score,
    mistakes: (a, b) => mistake(b) - mistake(a) || b.score - a.score,
  };

  function setThreshold(value) {
    if (threshold === null) { // the first threshold
      byId("undecided").remove();
      for (const list of worstLists) list.parentElement.hidden = false;
    }
    threshold = value;
    const counts = count();
    showCounts(counts);
    showMarks(counts);
    for (const button of all("[data-threshold]")) {
      button.setAttribute("aria-pressed", Number(button.dataset.threshold) === threshold);
    }
    for (const card of cards) {
      const now = outcome(card);
      if (now === card.outcome) continue;
      card.outcome = now;
      card.element.dataset.outcome = now;
      card.badge.textContent = data.outcomes[now];
    }
    showWorst();
    showLabelled();
    arrange();
  }

  function showLabelled() {
    for (const list of all("[data-labelled]")) {
      let missed = 0;
      for (const card of list.children) {
        const now = Number(card.dataset.score) >= threshold ? "found" : "missed";
        missed += now === "missed";
        card.dataset.outcome = now;
        card.querySelector(".outcome").textContent = data.labelled_outcomes[now];
      }
      const text = `, ${missed.toLocaleString("en")} would be missed`;
      list.previousElementSibling.querySelector("[data-missed]").textContent = text;
    }
  }

  function count() {
    const sums = {found: 0, missed: 0, falseAlarms: 0, passed: 0, alarms: 0, n: 0};
    data.groups.forEach((group, i) => {
      const n = alarms(group), rest = group.n - n;
      sums.alarms += n;
      sums.n += group.n;
      sums[group.anomaly ? "found" : "falseAlarms"] += n;
      sums[group.anomaly ? "missed" : "passed"] += rest;
      const texts = {alarms: number(n), missed: number(rest), miss_rate: rate(rest, group.n)};
      for (const cell of all(`[data-class="${i}"] [data-cell]`)) {
        cell.textContent = texts[cell.dataset.cell];
      }
    });
    return sums;
  }

  function showCounts({found, missed, falseAlarms, passed, alarms, n}) {
    const texts = {
      heading: `At the threshold ${threshold.toFixed(3)}`,
      found: number(found), missed: number(missed),
      false_alarms: number(falseAlarms), false_alarms_in_words: plural(falseAlarms, "false alarm"),
      passed: number(passed),
      miss_rate: rate(missed, missed + found),
      false_alarm_rate: rate(falseAlarms, falseAlarms + passed),
      precision: rate(found, found + falseAlarms),
      f1: rate(2 * found, 2 * found + missed + falseAlarms),
      alarms: number(alarms), alarms_in_words: plural(alarms, "alarm"), alarm_share: rate(alarms, n),
    };
    for (const element of all("[data-live]")) {
      element.textContent = texts[element.dataset.live];
    }
    slider.setAttribute("aria-valuetext", threshold.toFixed(3));
  }

  function showMarks({found, missed, falseAlarms, passed}) {
    const recall = found / (found + missed);
    const places = {
      "histogram": [position(threshold), 0],
      "roc": [falseAlarms / (falseAlarms + passed), recall],
      "precision-recall": [recall, found / (found + falseAlarms)],
    };
    for (const chart of all("[data-kind]")) {
      const place = places[chart.dataset.kind];
      if (!place) continue;
      const {box, x_limits, y_limits} = JSON.parse(chart.dataset.frame);
      const [left, top, right, bottom] = box;
      const x = left + (place[0] - x_limits[0]) / (x_limits[1] - x_limits[0]) * (right - left);
      const y = bottom - (place[1] - y_limits[0]) / (y_limits[1] - y_limits[0]) * (bottom - top);
      const mark = chart.querySelector(".marks").firstElementChild;
      const inside = x >= left && x <= right && Number.isFinite(y);
      mark.setAttribute("visibility", inside ? "visible" : "hidden");
      if (!inside) continue;
      const moved = mark.tagName === "line" ? {x1: x, x2: x} : {cx: x, cy: y};
      for (const [name, value] of Object.entries(moved)) mark.setAttribute(name, value);
    }
  }

  const worstLists = all("[data-worst]");
  const worst = {};

  function showWorst() {
    if (!worstLists.length) return;
    const of = (kind) => cards.filter((card) => card.outcome === kind);
    const missed = of("missed").sort(orders.lowest);
    const falseAlarms = of("false-alarm").sort(orders.highest);
    const nMissed = Math.min(missed.length, Math.max(6, 12 - falseAlarms.length));
    const now = {
      "missed": missed.slice(0, nMissed),
      "false-alarm": falseAlarms.slice(0, 12 - nMissed),
    };
    for (const list of worstLists) {
      const kind = list.dataset.worst, before = worst[kind];
      if (before?.length === now[kind].length && now[kind].every((card, i) => card === before[i])) {
        continue;
      }
      worst[kind] = now[kind];
      list.replaceChildren(...now[kind].map((card) => {
        const copy = card.element.cloneNode(true);
        copy.hidden = false;
        return copy;
      }));
    }
  }

  function arrange() {
    if (!gallery) return;
    const group = byId("class")?.value ?? "";
    const outcomes = byId("outcome").value.split(" ");
    let shown = 0;
    for (const card of cards) {
      const fits = (group === "" || card.group === group)
        && (outcomes[0] === "" || outcomes.includes(card.outcome)
          || (outcomes[0] === "odd" && "odd" in card.element.dataset));
      card.element.hidden = !fits;
      shown += fits;
    }
    const ordered = [...cards].sort(orders[byId("order").value]);
    if (ordered.some((card, i) => card.element !== gallery.children[i])) {
      gallery.replaceChildren(...ordered.map((card) => card.element));
    }
    const total = cards.length.toLocaleString("en");
    byId("shown").textContent = `${shown.toLocaleString("en")} of ${total} images`;
  }

  // The slider gives scores rounded to about a thousandth of the axis. The page is updated at most
  // once per frame.
  const ends = [scoreAt(slider.min), scoreAt(slider.max)];
  const largest = Math.max(...ends.map(Math.abs));
  const digits = Math.max(3, Math.ceil(Math.log10(1000 * largest / (ends[1] - ends[0]))));
  let waiting = 0;
  slider.addEventListener("input", () => {
    exact.value = Number(scoreAt(slider.value).toPrecision(digits));
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => setThreshold(Number(exact.value)));
  });
  exact.addEventListener("input", () => {
    if (exact.value === "" || !exact.validity.valid) return;
    slider.value = position(exact.value);
    setThreshold(Number(exact.value));
  });
  for (const button of all("[data-threshold]")) {
    button.addEventListener("click", () => {
      exact.value = button.dataset.threshold;
      slider.value = position(exact.value);
      setThreshold(Number(exact.value));
    });
  }
  for (const select of all(".filters select")) select.addEventListener("change", arrange);
  document.querySelector(".filters")?.addEventListener("submit", (event) => event.preventDefault());

  const viewer = byId("viewer");
  let opened = null;
  const neighbours = () => [...opened.parentElement.children].filter((card) => !card.hidden);

  function view(card) {
    opened = card;
    const title = card.querySelector(".path").textContent;
    viewer.setAttribute("aria-label", title);
    byId("views").replaceChildren(...all("img", card).map((image) => {
      const figure = document.createElement("figure");
      const caption = document.createElement("figcaption");
      caption.textContent = image.alt;
      const copy = image.cloneNode();
      copy.loading = "eager";
      figure.append(copy, caption);
      return figure;
    }));
    byId("facts").replaceChildren(...all("p", card).map((line) => line.cloneNode(true)));
    viewer.dataset.outcome = card.dataset.outcome;
    const list = neighbours(), i = list.indexOf(card);
    byId("place").textContent = `${i + 1} of ${list.length}`;
    byId("previous").disabled = i === 0;
    byId("next").disabled = i === list.length - 1;
    if (!viewer.open) viewer.showModal();
    viewer.dispatchEvent(new CustomEvent("view", {detail: card}));
  }
  function step(by) {
    const list = neighbours();
    const card = list[list.indexOf(opened) + by];
    if (card) view(card);
  }
  document.addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    if (card && event.target.closest(".views")) view(card);
    else if (event.target === viewer) viewer.close();
  });
  // Of the document: a button that is disabled at the last image loses the focus.
  document.addEventListener("keydown", (event) => {
    const by = {ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1}[event.key];
    if (by === undefined || !viewer.open || event.target.matches("input")) return;
    event.preventDefault();
    step(by);
  });
  viewer.addEventListener("close", () => {
    opened.scrollIntoView({block: "nearest"});
    opened.querySelector(".views").focus();
  });
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("close").addEventListener("click", () => viewer.close());

  document.documentElement.classList.add("live");
}
