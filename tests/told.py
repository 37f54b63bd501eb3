"""Hand-made histories of runs in which much went wrong, for whoever tells how a run stands."""

import json
import os
import time
from pathlib import Path

import tomli_w

from server.config import FederationConfig
from server.run_folder import lock_of

SITES = ("site-a", "site-b", "site-c", "site-d", "site-x")
GROUPS = ("decoder", "encoder.ASL", "encoder.T1WI")


def federation(rounds=20, **changed):
    """``federation.toml`` as a table: four training sites, of which site-a is required."""
    sites = {site: {} for site in SITES[:4]} | {"site-x": {"role": "evaluate"}}
    sites["site-a"] = {"required": True}
    content = {"run": "glioma-cbv", "seed": 1, "preset": "tiny", "sites": sites}
    return content | {"rounds": {"count": rounds, "quorum": 2}} | changed


def accepted(size, seconds, **more):
    """A roster's entry."""
    weights = dict.fromkeys(GROUPS, 10) if size == 3 else dict.fromkeys((GROUPS[0], GROUPS[2]), 20)
    entry = {"status": "accepted", "weights": weights, "held": [], "duration_s": seconds}
    return entry | {"epsilon": None, "bytes": 1000 * size} | more


def joined(**statuses):
    roster = {name.replace("_", "-"): entry for name, entry in statuses.items()}
    return {"event": "join", "time": "2026-03-02T09:00:00Z", "roster": roster, "sites": {}}


def commit(number, roster, **more):
    taken = [entry for entry in roster.values() if entry["status"] == "accepted"]
    contributions = {
        group: {
            "sites": sum(group in entry["weights"] for entry in taken),
            "scans": sum(entry["weights"].get(group, 0) for entry in taken),
        }
        for group in GROUPS
    }
    event = {"event": "commit", "round": number, "time": f"2026-03-02T09:{number:02}:00Z"}
    return event | {"roster": roster, "contributions": contributions} | more


def validation(number, **psnr):
    sites = {
        name.replace("_", "-"): {
            "metrics": {"psnr_db_mean": value, "ssim_percent_mean": 3.0 * value},
            "num_scans": 10,
        }
        for name, value in psnr.items()
    }
    roster = {site: {"status": "accepted"} for site in sites}
    event = {"event": "evaluation", "evaluation": "metrics", "split": "validation"}
    return event | {"round": number, "sites": sites, "roster": roster, "score": 1.0}


def troubled(rounds=3):
    """A history: site-b is refused once, site-c lost, site-d never seen, a group is left once."""
    here = {"status": "joined"}
    events = [
        {"event": "commit", "round": 0, "time": "2026-03-02T08:59:00Z"},
        joined(site_a=here, site_b=here, site_c=here, site_d={"status": "offline"}, site_x=here),
    ]
    for number in range(1, rounds + 1):
        roster = {
            "site-a": accepted(3, 12, epsilon=0.5 * number),
            "site-b": accepted(2, 10, held=["encoder.ASL"]),
            "site-c": accepted(3, 30),
        }
        more = {"seconds": 31.5}
        if number == 2:
            roster["site-b"] = {"status": "refused", "code": "norm", "reason": "norm 12 <above> 10"}
            more["void"] = {"encoder.ASL": "site-b: norm"}
        if number == rounds:
            roster["site-c"] = {"status": "late"}
        events.append(commit(number, roster, **more))
        events.append(validation(number, site_a=20.0 + number, site_b=19.0 + 0.5 * number))
    return events


def write_run(folder: Path, events, *, config=None, snapshot=None, heard_ago_s=0.0):
    """A run folder; with a snapshot, a coordinator is at work, or was so many seconds ago."""
    folder.mkdir(parents=True, exist_ok=True)
    content = config or federation()
    (folder / "federation.toml").write_text(tomli_w.dumps(content))
    lock = lock_of(FederationConfig.model_validate(content))
    (folder / "federation.lock.json").write_text(json.dumps(lock))
    (folder / "history.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    if snapshot is not None:
        path, now = folder / "live.json", time.time()
        path.write_text(json.dumps({"time": now - heard_ago_s, **snapshot}))
        os.utime(path, (now - heard_ago_s,) * 2)
    return folder


def snapshot(label="round 4", **sites):
    """What a coordinator at work says of itself."""
    states = {name.replace("_", "-"): state for name, state in sites.items()}
    online = sorted({"site-x"} | {s for s, state in states.items() if state != "offline"})
    times = {"elapsed_s": 12.0, "deadline_s": 60.0}
    return {"label": label, **times, "sites": states, "reasons": {}, "online": online}
