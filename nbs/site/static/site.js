// A copy button on every code cell.
document.querySelectorAll(".highlight pre").forEach((pre) => {
  if (pre.closest(".cell_output")) return;
  const button = document.createElement("button");
  button.className = "copy";
  button.type = "button";
  button.textContent = "copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(pre.textContent);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
  pre.parentElement.append(button);
});
