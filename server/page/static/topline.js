// What a coordinator sees first: state of the run, rounds, deadline, who is here.

import { at, shown } from "./elements.js";
import { NONE, formatted } from "./formats.js";

const STATES = {
  running: "▶ Running",
  finished: "✓ Finished",
  silent: "⚠ Not heard of",
  incomplete: "⚠ Incomplete",
  stopped: "■ Stopped",
  "not started": "○ Not started",
};
const ALARMS = ["silent", "incomplete"];

export function showTopline(page) {
  at("run").textContent = page.run;
  at("phantom").hidden = !page.simulation;
  at("state").replaceChildren(STATES[page.state]);
  at("state").parentElement.classList.toggle("alarm", ALARMS.includes(page.state));
  at("state-more").replaceChildren(...doing(page));
  at("round").replaceChildren(
    shown(page, ["rounds_committed"], "count"),
    " of ",
    shown(page, ["rounds_planned"], "count"),
  );
  at("round-more").replaceChildren(
    "a round needs ",
    shown(page, ["quorum"], "count"),
    page.quorum === 1 ? " update" : " updates",
  );
  showSites(page);
  showNote(page);
}

function doing(page) {
  if (page.state === "running") {
    return page.now.sites ? [shown(page, ["now", "label"])] : ["no site has been asked yet"];
  }
  if (page.state === "finished") {
    return ["best model: round ", shown(page, ["finished", "best_round"], "count")];
  }
  return ["no coordinator is at work"];
}

function showSites(page) {
  if (page.state === "not started") {
    at("here").replaceChildren(shown(page, ["sites"], "length"));
    at("here-more").replaceChildren("none of them has been asked");
    at("sites-tile").classList.remove("alarm");
    return;
  }
  const isNow = page.state === "running";
  at("here").replaceChildren(
    shown(page, ["sites_here"], "length"),
    " of ",
    shown(page, ["sites"], "length"),
    isNow ? " here" : " took part",
  );
  const missing = page.sites_missing;
  at("sites-tile").classList.toggle("alarm", missing.length > 0);
  const names = missing.flatMap((_, i) => [i ? ", " : "", shown(page, ["sites_missing", i])]);
  const word = isNow ? "✗ missing: " : "✗ not at the last look: ";
  at("here-more").replaceChildren(...(missing.length ? [word, ...names] : ["✓ none missing"]));
}

function showNote(page) {
  const note = at("note");
  const again = "The same command, iedn-server start, goes on from the last committed round.";
  const texts = {
    silent: () => [
      "The coordinator was at work until ",
      shown(page, ["last_heard"], "epoch"),
      ` and has not ended well: killed, suspended or cut off. ${again}`,
    ],
    incomplete: () => [shown(page, ["incomplete", "reason"]), "."],
    stopped: () => [`No coordinator is at work in this folder. ${again}`],
    "not started": () => ["Nobody has been asked yet: iedn-server start begins the run."],
  };
  const text = texts[page.state];
  note.hidden = !text;
  note.replaceChildren(...(text ? text() : []));
}

// Runs every second, between what the server says: what is left shrinks by itself.
export function showDeadline(page, now) {
  const asked = page.state === "running" ? page.now : {};
  if (!asked.sites) {
    at("deadline").textContent = NONE;
    at("deadline-more").textContent = "nobody is waited for";
    return;
  }
  const left = Math.max(asked.deadline_s - asked.elapsed_s - (now - asked.time), 0);
  at("deadline").textContent = left > 0 ? `in ${formatted(Math.round(left), "seconds")}` : "over";
  at("deadline-more").replaceChildren("of ", shown(page, ["now", "deadline_s"], "seconds"));
}

// One sentence for who does not see the screen, and the title of the tab for who does not look.
export function announce(page) {
  const missing = page.sites_missing.length ? ` Missing: ${page.sites_missing.join(", ")}.` : "";
  const sentence =
    `${page.run}: ${page.state}, ${page.rounds_committed} of ${page.rounds_planned} rounds.` +
    missing;
  if (at("announcement").textContent !== sentence) at("announcement").textContent = sentence;
  const sign = ALARMS.includes(page.state) || (missing && page.state === "running") ? "⚠ " : "";
  document.title = `${sign}${page.rounds_committed}/${page.rounds_planned} ${page.state} – ${page.run}`;
}
