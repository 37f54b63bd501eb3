// The questions of a case: native radio buttons, so that Tab and arrows work as everywhere.

export class Form {
  constructor(fields, home) {
    this.fields = fields;
    this.home = home;
    this.questions = [];
    this.saved = {};
  }

  // Draws the questions; they take no input until `enable`.
  show(questions, answers) {
    this.disable();
    this.questions = questions;
    this.saved = answers;
    this.home.replaceChildren();
    let about = "";
    for (const question of questions) {
      if (question.about !== about) {
        about = question.about;
        const title = document.createElement("h3");
        title.className = "about";
        title.textContent = about;
        this.home.append(title);
      }
      this.home.append(this.#question(question));
    }
    this.undo();
  }

  enable() {
    this.fields.disabled = false;
    this.#focus(this.#nextOpen(0));
  }

  disable() {
    this.fields.disabled = true;
  }

  get isEnabled() {
    return !this.fields.disabled;
  }

  answers() {
    const found = {};
    for (const input of this.home.querySelectorAll("input:checked")) {
      found[input.name] = Number(input.value);
    }
    return found;
  }

  get missing() {
    const found = this.answers();
    return this.questions.filter((question) => !(question.key in found));
  }

  get isChanged() {
    const found = this.answers();
    return this.questions.some(({ key }) => found[key] !== this.saved[key]);
  }

  undo() {
    for (const input of this.home.querySelectorAll("input")) {
      input.checked = this.saved[input.name] === Number(input.value);
    }
  }

  // Scores the question that has the focus, else the first open one; false: no such score.
  score(value) {
    const focused = document.activeElement?.name;
    const at = this.questions.findIndex((question) => question.key === focused);
    const number = at >= 0 ? at : this.#nextOpen(0);
    const question = this.questions[number];
    const input = this.#input(question.key, value);
    if (!input) return false;
    input.checked = true;
    this.#focus(Math.min(number + 1, this.questions.length - 1));
    return true;
  }

  focusMissing() {
    this.#focus(this.#nextOpen(0));
  }

  #nextOpen(start) {
    const found = this.answers();
    const at = this.questions.findIndex((question, n) => n >= start && !(question.key in found));
    return at >= 0 ? at : 0;
  }

  #focus(number) {
    const { key } = this.questions[number];
    const group = [...this.home.querySelectorAll("input")].filter((input) => input.name === key);
    (group.find((input) => input.checked) ?? group[0]).focus();
  }

  #input(key, value) {
    const all = [...this.home.querySelectorAll("input")];
    return all.find((input) => input.name === key && Number(input.value) === value);
  }

  #question({ key, text, about, options }) {
    const field = document.createElement("fieldset");
    field.className = "question";
    const legend = document.createElement("legend");
    if (about) {
      const hidden = document.createElement("span");
      hidden.className = "hidden";
      hidden.textContent = `${about}: `;
      legend.append(hidden);
    }
    legend.append(text);
    const row = document.createElement("div");
    row.className = this.questions.length === 1 ? "options wide" : "options";
    for (const [value, meaning] of Object.entries(options)) row.append(option(key, value, meaning));
    field.append(legend, row);
    return field;
  }
}

function option(key, value, meaning) {
  const label = document.createElement("label");
  label.className = "option";
  const input = document.createElement("input");
  input.type = "radio";
  input.name = key;
  input.value = value;
  const face = document.createElement("span");
  const number = document.createElement("b");
  number.textContent = value;
  face.append(number, meaning);
  label.append(input, face);
  return label;
}

// What two readers gave before, without their names; rows that differ are marked and said.
export function readingsTable(questions, readings) {
  if (!readings.length) return [];
  const table = document.createElement("table");
  const caption = document.createElement("caption");
  caption.textContent = "First readings; ≠ marks where they differ";
  const head = table.createTHead().insertRow();
  for (const title of ["Question", ...readings.map((_, n) => `Reading ${n + 1}`)]) {
    head.append(cell("th", title, "col"));
  }
  const body = table.createTBody();
  for (const { key, text, about } of questions) {
    const row = body.insertRow();
    const scores = readings.map((reading) => reading[key]);
    const differs = new Set(scores).size > 1;
    row.className = differs ? "differs" : "";
    row.append(cell("th", `${differs ? "≠ " : ""}${about ? `${about}: ` : ""}${text}`, "row"));
    for (const score of scores) row.append(cell("td", String(score)));
  }
  table.prepend(caption);
  return [table];
}

function cell(tag, text, scope) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (scope) made.scope = scope;
  return made;
}
