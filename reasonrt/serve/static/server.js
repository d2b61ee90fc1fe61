// The endpoint of this server. The key stays in this module's memory.

import { list, text } from "./dom.js";

let key = "";

export const useKey = (value) => {
  key = value.trim();
};

/** The server asks for a key. */
export class LockedError extends Error {}

const headers = (more) => (key ? { ...more, authorization: `Bearer ${key}` } : more);

async function refusal(answer) {
  const told = await answer.json().catch(() => ({}));
  const message = text(told.error?.message) || `the server answers with status ${answer.status}`;
  return answer.status === 401 ? new LockedError(message) : new Error(message);
}

/** The ids of the models. */
export async function models() {
  const answer = await fetch("v1/models", { headers: headers({}) });
  if (!answer.ok) throw await refusal(answer);
  return list((await answer.json()).data).map((model) => text(model.id));
}

/** The chunks of a streamed answer; aborting `signal` ends the work. */
export async function* ask(body, signal) {
  const answer = await fetch("v1/chat/completions", {
    method: "POST",
    headers: headers({ "content-type": "application/json" }),
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!answer.ok) throw await refusal(answer);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    const lines = (rest + (value ?? "")).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
    }
    if (done) throw new Error("the answer broke off; ask again");
  }
}
