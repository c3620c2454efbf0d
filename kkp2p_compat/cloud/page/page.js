// The status page: asks every two seconds, and shows.  What a peer or another node has said may be
// anything, so everything is shown as text: by textContent, never as HTML.
"use strict";

const EVERY_MS = 2000;
const MINUTES = 30;
const KINDS = ["p2p", "relay", "failed"]; // from the bottom of the chart up

const at = (id) => document.getElementById(id);

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function fill(list, items, empty) {
  list.replaceChildren(...(items.length ? items : [element("li", empty, "empty")]));
}

function withUnit(value, units) {
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit && value < 100 ? 1 : 0;
  return `${value.toFixed(digits)}${units[unit]}`;
}

const count = (value) => (value < 10000 ? String(value) : withUnit(value, ["", " k", " M", " G"]));
const bytes = (value) => withUnit(value, [" B", " kB", " MB", " GB", " TB"]);
const percent = (part, all) => (all ? `${Math.round((100 * part) / all)} %` : "–");

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

const when = (unix) => new Date(1000 * unix).toLocaleString();

// All nodes together.

function total(nodes) {
  const newest = Math.max(...nodes.map((node) => node.stats.minute));
  const sum = { peers: 0, relay_bytes_per_s: 0, relay_sessions: 0, minutes: {}, nats: new Map() };
  for (const kind of KINDS) sum.minutes[kind] = new Array(MINUTES).fill(0);
  for (const { stats } of nodes) {
    for (const name of ["peers", "relay_bytes_per_s", "relay_sessions"]) sum[name] += stats[name];
    for (const kind of KINDS) {
      stats.minutes[kind].forEach((value, index) => {
        const place = index - (newest - stats.minute);
        if (place >= 0) sum.minutes[kind][place] += value;
      });
    }
    for (const [pair, paths] of Object.entries(stats.nats)) {
      const before = sum.nats.get(pair) || [0, 0, 0];
      sum.nats.set(pair, before.map((value, index) => value + paths[index]));
    }
  }
  return sum;
}

function drawChart(minutes) {
  const height = 150;
  const width = 600 / MINUTES;
  const heights = minutes.p2p.map((_, index) => KINDS.reduce((all, kind) => all + minutes[kind][index], 0));
  const most = Math.max(...heights, 1);
  const bars = [];
  for (let index = 0; index < MINUTES; index += 1) {
    let bottom = height;
    for (const kind of KINDS) {
      const tall = (height * minutes[kind][index]) / most;
      if (!tall) continue;
      bottom -= tall;
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      bar.setAttribute("class", kind);
      const box = { x: index * width + 1, y: bottom, width: width - 2, height: tall };
      for (const [name, value] of Object.entries(box)) bar.setAttribute(name, value.toFixed(1));
      bars.push(bar);
    }
  }
  at("chart").replaceChildren(...bars);
  at("top").textContent = `most: ${count(Math.max(...heights))}`;
}

function natItem([pair, [direct, relayed, none]]) {
  const all = direct + relayed + none;
  const item = element("li");
  const row = element("div", undefined, "row");
  row.append(element("span", pair), element("span", `${percent(direct, all)} of ${count(all)}`));
  const bar = element("progress");
  bar.max = all || 1;
  bar.value = direct;
  bar.setAttribute("aria-label", pair);
  item.append(row, bar);
  return item;
}

function nodeItem(node, own) {
  const item = element("li");
  const { stats } = node;
  const place = node.host ? `${node.host}:${node.port}` : `${node.relay_host}:${node.relay_port}`;
  item.append(element("b", node.region ? `${place} (${node.region})` : place));
  item.append(element("span", node.draining ? "draining" : "in service", node.draining ? "pill bad" : "pill good"));
  const facts = [
    `${node.role}, ${node.version}, up ${duration(stats.up_s)}${node.id === own ? ", this node" : ""}`,
    `${count(stats.peers)} peers, ${count(stats.calls)} calls open, load ${percent(Math.min(node.load, 1), 1)}`,
    `${count(stats.relay_sessions)} relay sessions, ${bytes(stats.relay_bytes_per_s)}/s`,
  ];
  for (const fact of facts) item.append(element("small", fact));
  return item;
}

function troubleItem(trouble) {
  const item = element("li", trouble.reason);
  item.append(element("small", `${when(trouble.unix_s)}, ${trouble.who}`));
  return item;
}

function loginItem(login) {
  const item = element("li");
  const link = element("a", login.peer);
  link.href = `#${encodeURIComponent(login.peer)}`;
  item.append(link, element("small", login.host));
  return item;
}

function showOverview(status) {
  const sum = total(status.nodes);
  const complete = (kind) => sum.minutes[kind][MINUTES - 2];
  const met = [...sum.nats.values()].reduce((all, each) => all.map((value, index) => value + each[index]), [0, 0, 0]);
  at("peers").textContent = count(sum.peers);
  at("calls").textContent = count(KINDS.reduce((all, kind) => all + complete(kind), 0));
  at("share").textContent = percent(met[0], met[0] + met[1] + met[2]);
  at("relayed").textContent = `${bytes(sum.relay_bytes_per_s)}/s`;
  drawChart(sum.minutes);
  const size = ([, paths]) => paths[0] + paths[1] + paths[2];
  const pairs = [...sum.nats].sort((one, other) => size(other) - size(one));
  fill(at("nats"), pairs.map(natItem), "No call has told its path yet.");
  fill(at("nodes"), status.nodes.map((node) => nodeItem(node, status.node)), "");
  fill(at("troubles"), status.troubles.map(troubleItem), "None.");
  fill(at("newest"), status.newest.map(loginItem), "Nobody is online here.");
  at("version").textContent = `kkp2p_compat ${status.version}`;
}

function showState(text, good) {
  at("state").textContent = text;
  at("state").className = good ? "pill good" : "pill bad";
}

// One peer.

function wantedPeer() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

function limitsText(limits) {
  const set = Object.entries(limits).filter(([, value]) => value !== null);
  return set.map(([name, value]) => `${name.replaceAll("_", " ")}: ${value}`).join(", ") || "none of its own";
}

function peerFacts(peer) {
  const facts = [];
  if (peer.node) facts.push(["Node", peer.node]);
  if (peer.since) facts.push(["Online since", when(peer.since)]);
  if (peer.here) {
    const { here } = peer;
    facts.push(["Address", here.host], ["Seen at", here.seen.join(", ")], ["NAT", here.nat || "not told"]);
    facts.push(["Calls it makes", `${here.open_calls} open, ${here.answered_calls} answered`]);
    facts.push(["Calls to it", String(here.incoming_calls)]);
  }
  if (peer.account) {
    const { account } = peer;
    facts.push(["Account", account.disabled ? "disabled" : "may log in"], ["Changed", when(account.changed)]);
    facts.push(["Who may call it", account.allow], ["Limits", limitsText(account.limits)]);
    const used = Object.entries(peer.today).map(([what, value]) => `${what.replaceAll("_", " ")}: ${value}`);
    facts.push(["Used today", used.join(", ") || "nothing"]);
  } else {
    facts.push(["Account", "there is none"]);
  }
  return facts;
}

function showPeer(peer) {
  at("peer-name").textContent = peer.peer;
  at("peer-state").textContent = peer.online ? "online" : "offline";
  at("peer-state").className = peer.online ? "pill good" : "pill";
  at("peer-facts").replaceChildren(
    ...peerFacts(peer).flatMap(([name, value]) => [element("dt", name), element("dd", value)]),
  );
}

function showNoPeer(name, reason) {
  at("peer-name").textContent = name;
  at("peer-state").textContent = reason;
  at("peer-state").className = "pill bad";
  at("peer-facts").replaceChildren();
}

// Again and again.

async function ask(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(5 * EVERY_MS) });
  if (!answer.ok) throw new Error((await answer.text()).trim() || answer.statusText);
  return answer.json();
}

let turn = 0; // an answer that comes after a newer question is not shown

async function update() {
  const mine = (turn += 1);
  const name = wantedPeer();
  at("overview").hidden = Boolean(name);
  at("peer").hidden = !name;
  try {
    const status = await ask("/api/status");
    if (mine !== turn) return;
    showState(status.not_ready || "ready", !status.not_ready);
    showOverview(status);
    at("updated").textContent = `updated ${new Date().toLocaleTimeString()}`;
  } catch (error) {
    if (mine === turn) showState(`no answer: ${error.message}`, false);
    return;
  }
  if (!name) return;
  if (!/^[!-~]{1,32}$/.test(name)) {
    showNoPeer(name, "that is no peer id");
    return;
  }
  try {
    const peer = await ask(`/api/peer?id=${encodeURIComponent(name)}`);
    if (mine === turn) showPeer(peer);
  } catch (error) {
    if (mine === turn) showNoPeer(name, error.message);
  }
}

async function run() {
  for (;;) {
    if (!document.hidden) await update();
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  }
}

addEventListener("hashchange", update);
at("search").addEventListener("submit", (event) => {
  event.preventDefault();
  location.hash = encodeURIComponent(at("wanted").value.trim());
});
run();
