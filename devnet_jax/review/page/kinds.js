// The field for the kind of a defect: type-ahead over the kinds so far.

import { byId, count, element } from "./dom.js";

export class Kinds {
  #panel = byId("picker");
  #input = byId("kind");
  #list = byId("kind-list");
  #state = null;
  #digits = []; // kinds in the order of the keys 1, 2, …
  #options = [];
  #active = 0;
  #last = ""; // the kind taken last
  #back = null; // what had the focus

  // take(kind): labels with a kind
  constructor(take) {
    this.take = take;
    this.#input.addEventListener("input", () => this.#fill());
    this.#input.addEventListener("keydown", (event) => this.#key(event));
    this.#panel.addEventListener("focusout", (event) => {
      if (!this.#panel.contains(event.relatedTarget)) this.close(false);
    });
    this.#list.addEventListener("mousedown", (event) => event.preventDefault()); // keeps the focus
    this.#list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.#choose(this.#options[[...this.#list.children].indexOf(option)]);
    });
  }

  get isOpen() { return !this.#panel.hidden; }

  // The keys keep their kinds while one works: a key must not change its meaning in the midst of a
  // series. So new kinds come last, and the most used come first only when the page is opened.
  update(state) {
    this.#state = state;
    const used = Object.keys(state.kinds).sort((a, b) => state.kinds[b] - state.kinds[a]);
    for (const kind of [...used, ...state.known_kinds]) {
      if (kind && !this.#digits.includes(kind)) this.#digits.push(kind);
    }
  }

  get all() { return this.#digits; }

  // Returns the kind of a key, or undefined.
  ofDigit(digit) { return this.#digits[digit - 1]; }

  use(kind) {
    this.#last = kind;
    if (!this.#digits.includes(kind)) this.#digits.push(kind);
  }

  // A kind that the server refused is none.
  forget(kind) {
    if (!(kind in this.#state.kinds)) this.#digits = this.#digits.filter((each) => each !== kind);
  }

  open() {
    this.#back = document.activeElement;
    this.#panel.hidden = false;
    byId("defect").setAttribute("aria-expanded", true);
    this.#input.value = "";
    this.#fill();
    this.#input.focus();
  }

  close(focus = true) {
    if (!this.isOpen) return;
    this.#panel.hidden = true;
    byId("defect").setAttribute("aria-expanded", false);
    if (focus) this.#back?.focus();
  }

  #fill() {
    const typed = this.#input.value.trim();
    const found = this.#digits.filter((kind) => kind.toLowerCase().includes(typed.toLowerCase()));
    const rank = (kind) => (typed ? !kind.toLowerCase().startsWith(typed.toLowerCase()) : kind !== this.#last);
    found.sort((a, b) => rank(a) - rank(b)); // stable
    this.#options = found.map((kind) => ({ kind, isNew: false }));
    if (typed && !this.#digits.includes(typed)) this.#options.push({ kind: typed, isNew: true });
    this.#list.replaceChildren(...this.#options.map((option, i) => this.#draw(option, i)));
    this.#activate(0);
  }

  #draw({ kind, isNew }, i) {
    const option = element("li", { id: `kind-${i}`, role: "option" });
    if (isNew) {
      option.append("new kind: ", element("strong", { textContent: kind, dir: "auto" }));
      return option;
    }
    const digit = this.#digits.indexOf(kind) + 1;
    option.append(element("span", { textContent: kind, dir: "auto" }));
    const n = this.#state?.kinds[kind];
    if (n) option.append(" ", element("span", { className: "soft", textContent: `${count(n)} so far` }));
    if (digit < 10) option.append(" ", element("kbd", { textContent: digit }));
    return option;
  }

  #activate(i) {
    this.#active = i;
    [...this.#list.children].forEach((option, j) => option.setAttribute("aria-selected", i === j));
    const option = this.#list.children[i];
    option?.scrollIntoView({ block: "nearest" });
    if (option) this.#input.setAttribute("aria-activedescendant", option.id);
    else this.#input.removeAttribute("aria-activedescendant");
  }

  #key(event) {
    const n = this.#options.length;
    if (event.isComposing) return;
    if (event.key === "ArrowDown" && n) this.#activate((this.#active + 1) % n);
    else if (event.key === "ArrowUp" && n) this.#activate((this.#active + n - 1) % n);
    else if (event.key === "Escape") this.close();
    else if (event.key === "Enter") this.#choose(this.#options[this.#active]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #choose(option) {
    if (!option) return;
    this.close();
    this.take(option.kind);
  }
}
