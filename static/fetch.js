// Gradio's video field fetches an ffmpeg of 32 MB with each clip, for a trimmer of its own. The page has another, so the
// one is hidden and the other never comes.
//
// Gradio's client hears the server in one stream, which the server ends after the last answer; the next event opens
// another. An event that is sent while the word of that end is still on its way takes the old stream for open, and waits
// for ever. So the client gets a stream that never ends, behind which the server's are opened while an event waits.

const real = window.fetch, waiting = new Set(), early = new Set();
let hear;
const heed = (message) => {
  if (!/"(close_stream|process_completed|unexpected_error)"/.test(message)) return true;
  const { msg, event_id } = JSON.parse(message.slice("data: ".length));
  if (msg === "unexpected_error") waiting.clear();
  if (msg === "process_completed" && !waiting.delete(event_id)) early.add(event_id);
  return msg !== "close_stream";
};
const listen = (request) => {
  let heard, hearing = false;
  const encoder = new TextEncoder(), pass = (message) => heard.enqueue(encoder.encode(message + "\n\n"));
  const read = async () => {
    const { ok, status, body } = await real(request);
    if (!ok) throw new Error(`the server answered ${status}`);
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(), rest = ""; !part.done; part = await reader.read()) {
      const messages = (rest + part.value).split("\n\n");
      rest = messages.pop();
      messages.filter(heed).forEach(pass);
    }
  };
  hear = async () => {
    if (hearing) return;
    hearing = true;
    try {
      do await read(); while (waiting.size);
    } catch (error) {
      if (request.signal.aborted) return heard.error(error);
      console.error(error);
      waiting.clear();
      pass('data: {"msg": "broken_connection", "message": "Connection errored out."}');
    }
    hearing = false;
  };
  return new Response(new ReadableStream({ start: (stream) => { heard = stream; hear(); } }));
};
window.fetch = async (...told) => {
  const address = told[0].url ?? String(told[0]);
  if (address.includes("/static/ffmpeg/")) return new Promise(() => {});
  if (address.includes("/queue/data?")) return listen(told[0]);
  const answer = await real(...told);
  if (answer.ok && address.includes("/queue/join")) {
    const { event_id } = await answer.clone().json();
    if (!early.delete(event_id)) waiting.add(event_id);
    hear?.();
  }
  return answer;
};
