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
    severity: element.querySelector(".severity"),
  })) : [];
  let threshold = data.threshold;

  // The scale of the histogram's axis: about linear near 0, logarithmic far from it.
  const position = (score) => Math.asinh(score / data.width);
  const scoreAt = (position) => data.width * Math.sinh(position);

  // Rounds and groups digits like Python.
  const fixed = (value, decimals) => new Intl.NumberFormat("en", {
    minimumFractionDigits: decimals, maximumFractionDigits: decimals, roundingMode: "halfEven",
    useGrouping: false,
  }).format(value);
  const about = data.step > 1 ? "≈ " : "";
  const number = (n) => about + n.toLocaleString("en");
  const plural = (n, word) => `${number(n)} ${word}${n === 1 ? "" : "s"}`;

  // The texts of format_measure and format_rate in devnet_jax.report.digits, with Wilson's interval.
  function measure(value) {
    let decimals = value < 0.1 ? 3 : 2;
    while (value < 1 && Number(fixed(value, decimals)) >= 1) decimals++;
    return about + fixed(value, decimals);
  }
  function rate(name, part, whole) {
    const counts = `${number(part)} of ${whole.toLocaleString("en")}`;
    if (!whole) return {[name]: "–", [`${name}_counts`]: `(${counts})`};
    const value = part / whole, z2 = 3.841458820694124 / whole;
    const middle = (value + z2 / 2) / (1 + z2);
    const reach = Math.sqrt(z2 * value * (1 - value) + z2 ** 2 / 4) / (1 + z2);
    const low = part ? middle - reach : 0, high = part < whole ? middle + reach : 1;
    const decimals = Math.max(2, Math.ceil(-Math.log10((high - low) / 2))) - 2;
    const text = (each, units) => {
      const near = Math.min(each, 1 - each), isNear = near > 0 && near < units * 10 ** (-2 - decimals);
      return fixed(100 * each, decimals + (isNear ? 1 : 0));
    };
    const interval = `${text(low, 1)}–${text(high, 1)}%`;
    return {[name]: `${about}${text(value, 10)}%`, [`${name}_counts`]: `(${counts}; ${interval})`};
  }

  function alarms(group) {
    let low = 0, high = group.scores.length; // descending
    while (low < high) {
      const middle = (low + high) >> 1;
      if (group.scores[middle] >= threshold) low = middle + 1;
      else high = middle;
    }
    return Math.min(low * data.step, group.n);
  }

  const shown = (value) => all("[data-threshold]")
    .find((button) => Number(button.dataset.threshold) === value)?.dataset.text ?? String(value);

  // As in devnet_jax.inference.verdicts: 0.5 at the threshold.
  function severity(score) {
    const width = Math.max(Math.abs(threshold - data.typical), 1e-3 * Math.max(1, Math.abs(threshold)));
    const x = (score - threshold) / width;
    const value = 0.5 + 0.5 * x / (1 + Math.abs(x)), alarm = score >= threshold;
    for (let digits = 2; digits <= 16; digits++) {
      const text = value.toFixed(digits);
      if (Number(text) >= 0.5 === alarm) return text;
    }
    return alarm ? "0.50" : "0.49";
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
      document.querySelector(".setting").hidden = false;
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
      if (card.severity) card.severity.textContent = severity(card.score);
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
      const texts = {alarms: number(n), ...rate("miss_rate", rest, group.n)};
      for (const cell of all(`[data-class="${i}"] [data-cell]`)) {
        cell.textContent = texts[cell.dataset.cell];
      }
    });
    return sums;
  }

  function showCounts({found, missed, falseAlarms, passed, alarms, n}) {
    const texts = {
      heading: `At the threshold ${shown(threshold)}`,
      found: number(found), missed: number(missed),
      false_alarms: number(falseAlarms), false_alarms_in_words: plural(falseAlarms, "false alarm"),
      passed: number(passed),
      ...rate("miss_rate", missed, missed + found),
      ...rate("false_alarm_rate", falseAlarms, falseAlarms + passed),
      ...rate("precision", found, found + falseAlarms),
      f1: measure(2 * found / (2 * found + missed + falseAlarms)),
      alarms: number(alarms), alarms_in_words: plural(alarms, "alarm"),
      ...rate("alarm_share", alarms, n),
    };
    byId("value").textContent = String(threshold);
    for (const element of all("[data-live]")) {
      element.textContent = texts[element.dataset.live];
    }
    slider.setAttribute("aria-valuetext", shown(threshold));
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
