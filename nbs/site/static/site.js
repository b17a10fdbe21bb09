// A copy button on every code cell.
document.querySelectorAll(".highlight pre").forEach((pre) => {
  if (pre.closest(".cell_output")) return;
  const button = document.createElement("button");
  button.className = "copy";
  button.type = "button";
  button.textContent = "copy";
  button.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(pre.textContent); button.textContent = "copied"; }
    catch { getSelection().selectAllChildren(pre); button.textContent = "selected: press Ctrl-C"; }
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
  pre.parentElement.append(button);
});

// The house: point at a room, or reach it by keys, and its own arrows stand out.
document.querySelectorAll("svg.house a").forEach((room) => {
  const house = room.closest("svg"), name = room.querySelector("text").textContent;
  const show = (on) => {
    house.classList.toggle("asked", on);
    house.querySelectorAll(".way").forEach((way) => way.classList.toggle("told", on && way.dataset.ends.split(" ").includes(name)));
  };
  for (const kind of ["mouseenter", "focus"]) room.addEventListener(kind, () => show(true));
  for (const kind of ["mouseleave", "blur"]) room.addEventListener(kind, () => show(false));
});

// The self-assessment: a score, the weakest part, the next step.
const form = document.getElementById("maturity");
if (form) {
  const KEY = "housemlops-maturity", result = document.getElementById("maturity-result"), sets = [...form.querySelectorAll("fieldset")];
  const LEVELS = ["by hand", "written down", "repeatable", "automated and judged"];
  const chosen = (set) => set.querySelector("input:checked");
  const say = (...parts) => { const line = document.createElement("p"); line.append(...parts); return line; };
  const strong = (text) => Object.assign(document.createElement("strong"), { textContent: text });
  function show() {
    const answered = sets.filter(chosen), points = (list) => list.reduce((sum, set) => sum + Number(chosen(set).value), 0);
    result.hidden = form.querySelector(".maturity-tools").hidden = !answered.length;
    if (!answered.length) return;
    const share = points(answered) / (3 * answered.length);
    const lines = [say(strong(`${points(answered)} of ${3 * answered.length} points: ${LEVELS[Math.min(3, Math.floor(4 * share))]}`), ` (${answered.length} of ${sets.length} questions answered)`)];
    const parts = form.dataset.parts.split(",").map((part) => [part, answered.filter((set) => set.dataset.part === part)]).filter(([, list]) => list.length);
    lines.push(say(parts.map(([part, list]) => `${part} ${points(list)}/${3 * list.length}`).join(" · ")));
    const next = answered.reduce((low, set) => (Number(chosen(set).value) < Number(chosen(low).value) ? set : low));
    if (Number(chosen(next).value) === 3) lines.push(say("Nothing is left to do of what was asked; ask harder questions."));
    else {
      const step = say(strong("Next: "), next.dataset.step);
      if (next.dataset.room) step.append(" How it is done here: ", Object.assign(document.createElement("a"), { href: `${next.dataset.room}.html`, textContent: next.dataset.room }), ".");
      lines.push(step);
    }
    result.replaceChildren(...lines);
  }
  try { Object.entries(JSON.parse(localStorage.getItem(KEY)) ?? {}).forEach(([name, value]) => { const radio = form.querySelector(`input[name="${name}"][value="${value}"]`); if (radio) radio.checked = true; }); } catch { /* storage is switched off */ }
  form.addEventListener("change", () => { try { localStorage.setItem(KEY, JSON.stringify(Object.fromEntries(new FormData(form)))); } catch { /* as above */ } show(); });
  form.addEventListener("reset", () => setTimeout(() => { try { localStorage.removeItem(KEY); } catch { /* as above */ } show(); }));
  show();
}
