// The live log of a build. The stream resumes by itself after the last byte that it showed.
(() => {
  "use strict";
  const box = document.getElementById("log");
  if (!box || !window.EventSource) return;
  const escapes = /\x1b\[[0-?]*[ -\/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]/g;
  const most = 2000000;
  let line = "";
  let shown = document.createTextNode("");
  box.append(shown);

  const atEnd = () => box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  const write = (text) => {
    const follow = atEnd();
    const parts = (line + text).replace(/\r\n/g, "\n").split("\n");
    line = parts.pop();
    // A carriage return writes over its own line.
    const done = parts.map((part) => part.slice(part.lastIndexOf("\r") + 1) + "\n").join("");
    let whole = shown.data.slice(0, shown.data.lastIndexOf("\n") + 1) + done.replace(escapes, "");
    if (whole.length > most) whole = "…\n" + whole.slice(whole.indexOf("\n", whole.length - most) + 1);
    shown.data = whole + line.slice(line.lastIndexOf("\r") + 1).replace(escapes, "");
    if (follow) box.scrollTop = box.scrollHeight;
  };

  const source = new EventSource(box.dataset.stream);
  source.addEventListener("log", (event) => write(JSON.parse(event.data).text));
  source.addEventListener("attempt", (event) => {
    const attempt = JSON.parse(event.data).attempt;
    if (attempt > 1) write("\n--- attempt " + attempt + "\n");
  });
  source.addEventListener("end", () => {
    source.close();
    window.location.reload();
  });
})();
