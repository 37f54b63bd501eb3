// The page: the document as the server sends it, each section drawn anew when its part changes.

import { Connection } from "./connection.js";
import { showCurves, showNumbers } from "./curves.js";
import { at } from "./elements.js";
import { localTime } from "./formats.js";
import {
  showContributions,
  showPrivacy,
  showRefusals,
  showRounds,
  showSites,
} from "./sections.js";
import { announce, showDeadline, showTopline } from "./topline.js";

// Each section, and the fields that it shows.
const SECTIONS = [
  [showTopline, ["run", "simulation", "state", "now", "rounds_committed", "rounds_planned", "quorum",
    "finished", "incomplete", "last_heard", "sites", "sites_here", "sites_missing"]],
  [announce, ["run", "state", "rounds_committed", "rounds_planned", "sites_missing"]],
  [showSites, ["sites", "site_states", "rosters", "rounds_committed"]],
  [showCurves, ["sites", "curves", "worst_now"]],
  [showRounds, ["sites", "rounds", "rosters", "worst_site", "void"]],
  [showContributions, ["sites", "contributions", "rounds_committed"]],
  [showPrivacy, ["privacy_reported", "privacy_demanded"]],
  [showRefusals, ["not_accepted"]],
];

let page = null;
let problem = "";

function show(changed) {
  for (const [section, fields] of SECTIONS) {
    if (fields.some((field) => field in changed)) section(page);
  }
  tick();
}

function tick() {
  if (page) showDeadline(page, connection.now());
}

function showConnection() {
  const place = at("connection");
  const isRight = connection.isOpen && !problem;
  const numbers = connection.told === null ? "" : ` The numbers are those of ${localTime(rightUntil())}.`;
  if (isRight) {
    say(place, "live", "Live: numbers follow the run");
  } else if (problem) {
    say(place, "lost", `${problem}${numbers}`);
  } else if (page === null) {
    say(place, "connecting", "Connecting…");
  } else {
    const since = localTime(connection.heard / 1000);
    say(place, "lost", `Not connected since ${since}: is the page's program running?${numbers}`);
  }
  at("page").classList.toggle("lost", !isRight && page !== null);
}

let problemSince = null;
const rightUntil = () => problemSince ?? connection.heard / 1000;

function say(place, state, text) {
  place.dataset.state = state;
  if (place.textContent !== text) place.textContent = text;
}

const connection = new Connection("/events", {
  document(fields) {
    page = fields;
    show(fields);
  },
  change(fields) {
    Object.assign(page, fields);
    show(fields);
  },
  problem(sentence, time) {
    problem = sentence;
    problemSince = sentence ? time + connection.ahead : null;
    showConnection();
  },
  state: showConnection,
});

function toggles(id, section, less, more) {
  at(id).addEventListener("click", () => {
    const isAll = at(id).toggleAttribute("data-all");
    at(id).textContent = isAll ? less : more;
    section(page);
  });
}

toggles("rounds-all", showRounds, "Show the last rounds only", "Show all rounds");
toggles("refusals-all", showRefusals, "Show the last entries only", "Show the whole log");
at("numbers").addEventListener("toggle", () => page && showNumbers(page));
setInterval(tick, 1000);
