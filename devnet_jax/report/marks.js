// Marks of the pictures of a prediction: good, or defect with its kind. They make labels.csv.
{
  const {identity, kinds} = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const gallery = byId("gallery"), viewer = byId("viewer");
  const storageKey = `devnet_jax marks ${identity}`;
  const GOOD_WORDS = ["good", "normal", "ok"]; // no names of kinds in a list of labels
  const KEYS = {r: "right", w: "wrong", g: "good", d: "defect"};

  const pictures = new Map(); // by card
  let marks = new Map(); // {label: "good" or "anomaly", kind} by path
  let viewed = null; // the card in the viewer

  // The quick marks judge the outcome at the present threshold, the others are labels.
  function meaning(name, card) {
    if (name === "good" || name === "defect") return name === "good" ? "good" : "anomaly";
    const isAlarm = {alarm: true, quiet: false}[card.dataset.outcome];
    if (isAlarm === undefined) return null; // no threshold
    return isAlarm === (name === "right") ? "anomaly" : "good";
  }

  function press(name, card) {
    const {path, kind} = pictures.get(card);
    const label = meaning(name, card), before = marks.get(path);
    if (label === null) return;
    if (before?.label === label) marks.delete(path);
    else marks.set(path, {label, kind: label === "anomaly" ? kind : ""});
    keep();
    update(card);
  }

  function nameKind(field, card) {
    const text = field.value.trim(), {path} = pictures.get(card);
    const isGood = GOOD_WORDS.includes(text.toLowerCase());
    field.setCustomValidity(isGood ? `A kind of defect cannot be named ${text}.` : "");
    if (isGood) field.reportValidity();
    if (text === "" && !marks.has(path)) return;
    marks.set(path, {label: "anomaly", kind: isGood ? "" : text});
    keep();
    update(card, field);
  }

  function controls(withKeys) {
    const element = document.createElement("div");
    element.className = "mark";
    element.setAttribute("role", "group");
    for (const pair of [["right", "wrong"], ["good", "defect"]]) {
      const span = document.createElement("span");
      for (const name of pair) {
        const button = document.createElement("button");
        button.type = "button";
        button.dataset.mark = name;
        button.append(name);
        if (withKeys) {
          const key = document.createElement("kbd");
          key.textContent = name[0];
          key.setAttribute("aria-hidden", "true");
          button.append(" ", key);
          button.setAttribute("aria-keyshortcuts", name[0]);
        }
        span.append(button);
      }
      element.append(span);
    }
    return element;
  }

  function kindField(withKey) {
    const field = document.createElement("input");
    field.type = "text";
    field.autocomplete = "off";
    field.placeholder = withKey ? "kind (k)" : "kind";
    field.setAttribute("list", "known-kinds");
    field.setAttribute("aria-label", "Kind of defect");
    if (withKey) field.setAttribute("aria-keyshortcuts", "k");
    return field;
  }

  // The field that is being typed in keeps its text, with the spaces.
  function show(element, card, typed) {
    const {path} = pictures.get(card), mark = marks.get(path);
    element.setAttribute("aria-label", `Marks of ${path}`);
    for (const button of element.querySelectorAll("button")) {
      const label = meaning(button.dataset.mark, card);
      button.disabled = label === null;
      button.setAttribute("aria-pressed", label !== null && mark?.label === label);
    }
    const isDefect = mark?.label === "anomaly";
    let field = element.querySelector("input");
    if (!field && isDefect) element.append(field = kindField(false));
    if (!field || field === typed) return;
    field.hidden = !isDefect && element !== large;
    field.value = isDefect ? mark.kind : "";
    field.setCustomValidity("");
  }

  const large = controls(true);
  large.append(kindField(true));
  byId("facts").after(large);

  function update(card, typed) {
    show(card.lastElementChild, card, typed);
    if (card === viewed) show(large, card, typed);
    summarise();
  }

  function summarise() {
    const all = [...marks.values()];
    const n = (count) => count.toLocaleString("en");
    const nGood = all.filter(({label}) => label === "good").length;
    const counts = all.length ? `: ${n(nGood)} good, ${n(all.length - nGood)} defect` : "";
    byId("marked").textContent = `${n(all.length)} of ${n(pictures.size)} images marked${counts}`;
    byId("download").disabled = all.length === 0;
  }

  function offerKinds() {
    const used = [...marks.values()].map(({kind}) => kind);
    const names = [...new Set([...kinds, ...used])].filter((name) => name !== "").sort();
    byId("known-kinds").replaceChildren(...names.map((name) => new Option(name, name)));
  }

  function keep() {
    try {
      localStorage.setItem(storageKey, JSON.stringify([...marks]));
    } catch {
      byId("forgetful").hidden = false;
    }
  }

  function load() {
    try {
      const known = new Set([...pictures.values()].map(({path}) => path));
      const kept = JSON.parse(localStorage.getItem(storageKey) ?? "[]");
      marks = new Map(kept.filter(([path]) => known.has(path)));
    } catch {
      byId("forgetful").hidden = false;
    }
  }

  // Spreadsheets run such a cell as a formula. A list of labels is read without the apostrophe, and
  // "./" before a path names the same file.
  const isFormula = (text) => /^'*[=+\-@\t\r\n＝＋－＠]/.test(text);
  const quote = (text) => `"${text.replaceAll('"', '""')}"`;

  function row([path, {label, kind}]) {
    const cells = [isFormula(path) ? `./${path}` : path, label, isFormula(kind) ? `'${kind}` : kind];
    return cells.map(quote).join(",");
  }

  function table() {
    const rows = [...marks].sort(([a], [b]) => (a < b ? -1 : 1)).map(row);
    const text = ['"path","label","defect"', ...rows, ""].join("\n");
    // A lone surrogate is Python's sign of a byte that is not UTF-8, in the name of a file.
    const parts = text.split(/([\udc80-\udcff]+)/u);
    return new Blob(parts.map((part, i) => (
      i % 2 ? Uint8Array.from(part, (sign) => sign.charCodeAt(0) - 0xdc00) : part
    )), {type: "text/csv"});
  }

  byId("download").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(table());
    link.download = "labels.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  });

  const cardOf = (element) => (large.contains(element) ? viewed : element.closest(".card"));
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-mark]");
    if (button) press(button.dataset.mark, cardOf(button));
  });
  document.addEventListener("input", (event) => {
    if (event.target.closest(".mark")) nameKind(event.target, cardOf(event.target));
  });
  document.addEventListener("change", offerKinds);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const {target} = event;
    if (target.matches(".mark input")) {
      if (event.key !== "Enter") return;
      event.preventDefault(); // or Enter would press the button, too
      target.parentElement.querySelector("[data-mark=defect]").focus();
    } else if (viewer.open && event.key === "k") {
      event.preventDefault();
      large.querySelector("input").focus();
    } else if (viewer.open && event.key in KEYS && !event.repeat) {
      press(KEYS[event.key], viewed);
    }
  });
  viewer.addEventListener("view", (event) => {
    viewed = event.detail;
    show(large, viewed);
  });
  addEventListener("storage", (event) => { // another tab with this report
    if (event.key !== storageKey) return;
    load();
    for (const card of pictures.keys()) update(card);
    offerKinds();
  });

  for (const card of gallery.children) {
    const [path, kind] = JSON.parse(card.dataset.picture);
    pictures.set(card, {path, kind});
    card.append(controls(false));
  }
  load();
  for (const card of pictures.keys()) show(card.lastElementChild, card);
  summarise();
  offerKinds();
  new MutationObserver((changes) => {
    for (const {target} of changes) if (pictures.has(target)) show(target.lastElementChild, target);
  }).observe(gallery, {subtree: true, attributeFilter: ["data-outcome"]});
}
