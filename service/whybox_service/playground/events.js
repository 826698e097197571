// Server-sent events read from fetch(), which, other than EventSource, can post a picture and carry a key.

/** Yield the events of a response's body as {name, data}; leaving the loop closes the connection. */
export async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pieces = []; // of a line that has no end yet
  let afterReturn = false;
  let name = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      if (!value) continue;
      const text = afterReturn && value[0] === "\n" ? value.slice(1) : value;
      afterReturn = value.endsWith("\r");
      const lines = text.split(/\r\n|\r|\n/);
      const rest = lines.pop();
      for (const end of lines) {
        const line = [...pieces, end].join("");
        pieces = [];
        if (!line) {
          if (data.length) yield { name: name || "message", data: data.join("\n") };
          name = "";
          data = [];
          continue;
        }
        const [, field, told] = line.match(/^([^:]*):? ?(.*)$/s);
        if (field === "data") data.push(told);
        else if (field === "event") name = told;
      }
      pieces.push(rest);
    }
  } finally {
    reader.cancel().catch(() => {}); // it may be aborted already
  }
}
