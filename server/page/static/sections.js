// The tables below the curves, each from the document alone.

import { at, cell, columnHead, fill, fillOrSay, newest, rowHead, shown } from "./elements.js";
import { NONE } from "./formats.js";

const FEW = 12;

const SITE_STATES = {
  working: ["● at work", "good"],
  replied: ["✓ has replied", "good"],
  waiting: ["◌ online", "good"],
  idle: ["◌ joined", "good"],
  "took part": ["✓ took part", "good"],
  missing: ["✗ missing", "bad"],
  refused: ["✗ refused", "bad"],
  "never seen": ["? never seen", "bad"],
};

const SIGNS = { accepted: "✓", joined: "✓", received: "✓", refused: "✗", failed: "✗", late: "◷" };
const sign = (status) => SIGNS[status] ?? "○";

export function showSites(page) {
  const heads = [
    ...["site", "role", "now", "why"].map((text) => columnHead(text)),
    ...["rounds with its update", "last one", "training", "received"].map((t) => columnHead(t, "number")),
  ];
  fill(at("sites"), heads, page.sites.map((site) => siteRow(page, site)));
}

function siteRow(page, site) {
  const path = ["site_states", site];
  const { state, role, required, last_round: last } = page.site_states[site];
  const [words, kind] = SITE_STATES[state];
  const update = ["rosters", String(last), site];
  const number = (...content) => cell(content, "number");
  return [
    rowHead(site),
    cell(`${role === "train" ? "trains" : "evaluates"}${required ? ", required" : ""}`, "nowrap"),
    cell(words, `nowrap ${kind}`),
    cell(shown(page, [...path, "why"])),
    role === "train"
      ? number(shown(page, [...path, "rounds"], "count"), " of ", shown(page, ["rounds_committed"], "count"))
      : number(NONE),
    number(shown(page, [...path, "last_round"], "count")),
    number(shown(page, [...update, "duration_s"], "seconds")),
    number(shown(page, [...update, "bytes"], "bytes")),
  ];
}

export function showRounds(page) {
  const indices = page.rounds.map((_, index) => index).reverse();
  const hasVoid = Object.keys(page.void).length > 0;
  const hasSent = page.rounds.some((round) => round.bytes_down !== null);
  const heads = [
    columnHead("round", "number"),
    columnHead("committed (UTC)"),
    columnHead("time", "number"),
    columnHead("received", "number"),
    ...(hasSent ? [columnHead("sent", "number")] : []),
    columnHead("updates", "number"),
    ...trainers(page).map((site) => columnHead(site)),
    columnHead("worst PSNR"),
    ...(hasVoid ? [columnHead("groups left as they were")] : []),
  ];
  const rows = newest("rounds", indices, FEW).map((i) => roundRow(page, i, { hasVoid, hasSent }));
  fillOrSay("rounds", heads, rows);
  at("rounds-note").hidden = rows.length === 0;
}

const trainers = (page) => page.sites.filter((site) => page.site_states[site].role === "train");

function roundRow(page, index, { hasVoid, hasSent }) {
  const path = ["rounds", index];
  const round = String(page.rounds[index].round);
  const number = (...content) => cell(content, "number");
  return [
    rowHead(shown(page, [...path, "round"], "count")),
    cell(shown(page, [...path, "time"], "utc"), "nowrap"),
    number(shown(page, [...path, "seconds"], "seconds")),
    number(shown(page, [...path, "bytes"], "bytes")),
    ...(hasSent ? [number(shown(page, [...path, "bytes_down"], "bytes"))] : []),
    number(shown(page, [...path, "accepted"], "count"), " of ", shown(page, [...path, "sites"], "count")),
    ...trainers(page).map((site) => rosterCell(page, round, site)),
    cell(page.worst_site[round] ? `▼ ${page.worst_site[round]}` : NONE, "nowrap"),
    ...(hasVoid ? [voidCell(page, round)] : []),
  ];
}

function rosterCell(page, round, site) {
  const entry = page.rosters[round][site];
  if (!entry) return cell("○ not asked", "off nowrap");
  const path = ["rosters", round, site];
  if (entry.status === "accepted") {
    const held = entry.held?.length ? ", held some" : "";
    return cell(["✓ ", shown(page, [...path, "duration_s"], "seconds"), held], "good nowrap");
  }
  const code = entry.code ? [": ", shown(page, [...path, "code"])] : [];
  return cell([`${sign(entry.status)} `, shown(page, [...path, "status"]), ...code], "bad nowrap");
}

function voidCell(page, round) {
  const groups = Object.keys(page.void[round] ?? {});
  return cell(
    groups.length
      ? groups.flatMap((group, i) => [`${i ? "; " : ""}${group} (`, shown(page, ["void", round, group]), ")"])
      : NONE,
  );
}

export function showContributions(page) {
  const groups = page.contributions.groups ?? {};
  const sites = trainers(page);
  const last = ["contributions", "round"];
  const heads = [
    columnHead("group"),
    ...sites.map((site) => columnHead(site, "number")),
    columnHead("sites", "number"),
    columnHead("scans", "number"),
    columnHead("in rounds", "number"),
  ];
  const rows = Object.keys(groups).map((group) => groupRow(page, group, sites));
  fillOrSay("contributions", heads, rows);
  const title = at("contributions-title");
  const place = rows.length ? [", round ", shown(page, last, "count"), " (declared scans)"] : [];
  title.replaceChildren("Contributions by modality group", ...place);
}

function groupRow(page, group, sites) {
  const path = ["contributions", "groups", group];
  const { by_site: weights, held, void: reason, sites: moved } = page.contributions.groups[group];
  const number = (content, kind = "") => cell(content, `number ${kind}`);
  const cells = sites.map((site) => {
    if (site in weights) return number(shown(page, [...path, "by_site", site], "count"));
    return held.includes(site) ? number("held", "bad") : number(NONE, "off");
  });
  const unmoved = reason || !moved ? " ○ stayed as it was" : null;
  return [
    rowHead(group.replace("encoder.", ""), unmoved ? `${unmoved}` : ""),
    ...cells,
    number(shown(page, [...path, "sites"], "count")),
    number(shown(page, [...path, "scans"], "count")),
    number([
      shown(page, [...path, "rounds"], "count"),
      " of ",
      shown(page, ["rounds_committed"], "count"),
    ]),
  ];
}

export function showPrivacy(page) {
  const told = Object.keys(page.privacy_reported);
  at("privacy").parentElement.hidden = told.length === 0;
  at("privacy-note").replaceChildren(...privacyNote(page, told.length > 0));
  const heads = [columnHead("site"), columnHead("ε so far", "number"), columnHead("said in round", "number")];
  const rows = told.map((site) => [
    rowHead(site),
    cell(shown(page, ["privacy_reported", site, "epsilon"], "fixed3"), "number"),
    cell(shown(page, ["privacy_reported", site, "round"], "count"), "number"),
  ]);
  fill(at("privacy"), heads, rows);
}

function privacyNote(page, hasTold) {
  const { tier } = page.privacy_demanded;
  const asked =
    tier === "off"
      ? ["The run asks for no noise; a site may add it by its own policy. "]
      : [
          `The run asks for tier ${tier}, noise multiplier `,
          shown(page, ["privacy_demanded", "noise_multiplier"], "text"),
          " or more. ",
        ];
  const told = hasTold
    ? "What a site has not said is not here; δ and how ε was computed are in its own ledger."
    : "No site has reported any privacy spent.";
  return [...asked, told];
}

export function showRefusals(page) {
  const indices = page.not_accepted.map((_, index) => index).reverse();
  const heads = ["when (UTC)", "where", "site", "what", "why"].map((text) => columnHead(text));
  const rows = newest("refusals", indices, FEW).map((index) => {
    const path = ["not_accepted", index];
    const { status } = page.not_accepted[index];
    return [
      cell(shown(page, [...path, "time"], "utc"), "nowrap"),
      cell(shown(page, [...path, "place"]), "nowrap"),
      rowHead(shown(page, [...path, "site"])),
      cell([`${sign(status)} `, shown(page, [...path, "status"])], "bad nowrap"),
      cell(shown(page, [...path, "why"])),
    ];
  });
  fillOrSay("refusals", heads, rows);
}
