// Small helpers for the document. Text from the server only ever becomes text nodes.

export const byId = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export const count = (n) => n.toLocaleString("en");
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
export const pause = (ms) => new Promise((done) => setTimeout(done, ms));

let last = 0;

// Says what has just happened; screen readers read it aloud.
export function say(text) {
  const id = ++last;
  byId("status").textContent = text;
  setTimeout(() => { if (id === last) byId("status").textContent = ""; }, 8000);
}

export function showProblem(text) {
  byId("problem").firstElementChild.textContent = text;
  byId("problem").hidden = !text;
}
