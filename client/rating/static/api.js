// The study's addresses. Every refusal becomes an error with the server's sentence.

export class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

async function call(method, path, body) {
  const options = { method, headers: {}, credentials: "same-origin" };
  if (method === "POST") {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body ?? {});
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Refused(0, "The study's program on this machine does not answer. Is it running?");
  }
  if (!response.ok) throw new Refused(response.status, await sentence(response));
  return response.status === 204 ? null : response.json();
}

async function sentence(response) {
  try {
    const { detail } = await response.json();
    return typeof detail === "string" ? detail : "The program refused this; nothing was recorded.";
  } catch {
    return `The program failed (${response.status}); nothing was recorded.`;
  }
}

export const login = (token) => call("POST", "/api/login", { token });
export const logout = () => call("POST", "/api/logout");
export const state = (position) =>
  call("GET", position === undefined ? "/api/state" : `/api/state?position=${position}`);
export const drawn = (item) => call("POST", `/api/items/${item}/drawn`);
export const score = (item, answers, revision) =>
  call("POST", `/api/items/${item}/scores`, { answers, revision });
export const finish = () => call("POST", "/api/finish");
export const join = (token) => call("POST", "/api/join", { token });
