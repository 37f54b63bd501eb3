// The page: one case at a time, from the server's state; keys before mouse.

import * as api from "./api.js";
import { Form, readingsTable } from "./form.js";
import { Viewer } from "./viewer.js";

const at = (id) => document.getElementById(id);
const STAGES = { initial: "first reading", consensus: "discussion", adjudication: "decision" };
const EARLY = "ignored: the maps are still being drawn.";

const form = new Form(at("fields"), at("questions"));
const viewer = new Viewer(at("maps"), at("structural"), (slice, slices) => {
  at("slice").textContent = `slice ${slice} of ${slices}`;
});
let page = null;
let busy = false;
let drawing = false;

async function begin() {
  const token = location.hash.slice(1);
  if (token) {
    // The token must not stay in the address, the history or a photograph of the screen.
    history.replaceState(null, "", location.pathname);
    if (!(await tried(() => api.login(token)))) return;
  }
  await open();
}

// Runs a request; a refusal becomes a notice. True if it went through.
async function tried(action) {
  try {
    await action();
    return true;
  } catch (error) {
    if (!(error instanceof api.Refused)) throw error;
    if (page === null || error.status === 401) notice("No open session", error.message);
    else alertReader(error.message);
    return false;
  }
}

async function open(position) {
  await tried(async () => {
    page = await api.state(position);
  });
  if (page) await show();
}

async function show() {
  at("study").textContent = page.study;
  at("who").textContent = `${page.reader}, ${STAGES[page.stage]}`;
  at("research").textContent = page.research_use;
  at("logout").hidden = false;
  at("progress").max = Math.max(page.total, 1);
  at("progress").value = page.done;
  at("place").textContent = page.total ? `${page.done} of ${page.total} scored` : "";
  if (page.item) {
    await showCase(page.item);
  } else if (page.needs_partner) {
    const text = `${page.total} cases with different scores are decided by both readers together.`;
    notice("Both readers are needed", text, { partner: true });
  } else {
    notice("Nothing to score now", page.notice, { again: true });
  }
}

function notice(title, text, { partner = false, again = false } = {}) {
  for (const id of ["viewer", "reading"]) at(id).hidden = true;
  form.disable();
  at("notice").hidden = false;
  at("notice-title").textContent = title;
  at("notice-text").textContent = text;
  at("partner").hidden = !partner;
  at("again").hidden = !again;
  at("notice-title").focus();
}

async function showCase(item) {
  at("notice").hidden = true;
  for (const id of ["viewer", "reading"]) at(id).hidden = false;
  const scenario = item.scenario ? `, ${item.scenario}` : "";
  at("case-title").textContent = `Case ${item.position + 1} of ${page.total}${scenario}`;
  at("alert").textContent = "";
  at("message").textContent = "Drawing the maps…";
  at("save").firstChild.textContent = item.revision ? "Save the correction " : "Save ";
  at("finishing").hidden = !page.can_finish;
  at("previous").disabled = item.position === 0;
  at("next").disabled = item.position === page.total - 1;
  const digits = Object.keys(item.questions[0].options);
  at("digits").textContent = `${digits.at(0)} to ${digits.at(-1)}`;
  form.show(item.questions, item.answers);
  at("readings").replaceChildren(...readingsTable(item.questions, item.readings));
  drawing = true;
  try {
    await viewer.show(item.panes, item.start_mm);
  } catch (error) {
    const text = `The maps cannot be drawn (${error.message}); nothing can be scored.`;
    alertReader(`${text} A browser with WebGL2 is needed.`);
    return;
  } finally {
    drawing = false;
  }
  drawScale(item.panes[0].window[1]);
  if (page.item !== item || !(await tried(() => api.drawn(item.id)))) return;
  form.enable();
  at("message").textContent = item.revision
    ? "Scored. A change is logged as a correction."
    : "Ready to be scored.";
}

function drawScale(most) {
  const colours = viewer.colours();
  const canvas = at("colours");
  const image = new ImageData(256, 1);
  image.data.set(colours.subarray(0, 1024));
  for (let i = 3; i < 1024; i += 4) image.data[i] = 255;
  canvas.getContext("2d").putImageData(image, 0, 0);
  at("most").textContent = `${most} × brain mean, the same in every map`;
}

function alertReader(text) {
  // Emptied first, so that the same sentence is announced again.
  at("alert").textContent = "";
  at("alert").textContent = text;
}

async function save() {
  if (busy) return;
  if (!form.isEnabled) {
    alertReader(`Enter ${EARLY}`);
    return;
  }
  if (form.missing.length) {
    const { about, text } = form.missing[0];
    alertReader(`Still to be scored: ${about ? `${about}, ` : ""}${text}`);
    form.focusMissing();
    return;
  }
  const { item } = page;
  busy = true;
  const isSaved = await tried(() => api.score(item.id, form.answers(), item.revision));
  busy = false;
  if (isSaved) await open();
}

async function walk(step) {
  if (drawing) {
    alertReader(`Page ${step < 0 ? "Up" : "Down"} ${EARLY}`);
    return;
  }
  const position = page.item.position + step;
  if (position < 0 || position >= page.total) return;
  if (form.isChanged) {
    alertReader("Not saved yet: Enter saves these scores, Esc undoes them.");
    return;
  }
  await open(position);
}

function undo() {
  form.undo();
  at("alert").textContent = "";
}

const ARROWS = {
  ArrowUp: [0, 1, 1],
  ArrowDown: [0, -1, -1],
  ArrowLeft: [1, 0, 0],
  ArrowRight: [-1, 0, 0],
};

// True if the key was for the images. Arrows to the left move towards the patient's right.
function moved(event) {
  const arrow = ARROWS[event.key];
  if (!arrow) return false;
  const [x, y, slices] = arrow;
  if (event.shiftKey) viewer.move(x, y, 0);
  else if (slices) viewer.scroll(slices);
  else return false;
  return true;
}

function scored(event) {
  if (!/^[0-9]$/.test(event.key)) return false;
  if (!form.isEnabled) alertReader(`Key ${event.key} ${EARLY}`);
  else if (form.score(Number(event.key))) at("alert").textContent = "";
  else alertReader(`${event.key} is not on the scale; nothing was changed.`);
  return true;
}

const ACTIONS = {
  Enter: save,
  Escape: undo,
  PageUp: () => walk(-1),
  PageDown: () => walk(1),
  c: () => viewer.toggleCrosshair(),
};

document.addEventListener("keydown", (event) => {
  if (at("reading").hidden || at("confirm").open) return;
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const isButton = event.target instanceof HTMLButtonElement && event.target.id !== "save";
  if (event.key === "Enter" && isButton) return;
  if (moved(event) || scored(event)) {
    event.preventDefault();
    return;
  }
  const action = ACTIONS[event.key] ?? ACTIONS[event.key.toLowerCase()];
  if (action) {
    event.preventDefault();
    action();
  }
});

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  save();
});
at("previous").addEventListener("click", () => walk(-1));
at("next").addEventListener("click", () => walk(1));
at("again").addEventListener("click", () => open());
at("finish").addEventListener("click", () => {
  at("confirm").returnValue = ""; // an earlier session's yes is not this one's
  at("confirm").showModal();
});
at("confirm").addEventListener("close", async () => {
  if (at("confirm").returnValue === "yes" && (await tried(api.finish))) await open();
});
at("partner").addEventListener("submit", async (event) => {
  event.preventDefault();
  const code = at("partner-code").value.split("#").pop();
  at("partner-code").value = "";
  try {
    await api.join(code);
  } catch (error) {
    at("notice-text").textContent = error.message;
    return;
  }
  await open();
});
at("logout").addEventListener("click", async () => {
  await tried(api.logout);
  page = null;
  at("logout").hidden = true;
  notice("Signed out", "Open your personal link to go on.");
});
window.addEventListener("hashchange", begin);

begin();
