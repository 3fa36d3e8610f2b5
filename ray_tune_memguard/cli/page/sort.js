// Sorts a table by the column whose heading is clicked: sizes, durations and numbers by their value.
const UNITS = { B: 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, s: 1, min: 60, h: 3600 };
const AMOUNT = /([+-]?[\d.]+)\s*(B|KiB|MiB|GiB|s|min|h)?(?=\s|$)/g;

function amount(text) {
  const found = [...text.replace(/[,~]/g, "").matchAll(AMOUNT)];
  return found.reduce((sum, [, digits, unit]) => sum + digits * (UNITS[unit] || 1), found.length ? 0 : -Infinity);
}

for (const heading of document.querySelectorAll("th button")) {
  heading.addEventListener("click", () => {
    const cell = heading.parentElement;
    const table = cell.closest("table");
    const column = [...cell.parentElement.children].indexOf(cell);
    const isNumber = cell.classList.contains("number");
    const isDown = cell.getAttribute("aria-sort") !== "descending" && (isNumber || cell.hasAttribute("aria-sort"));
    const of = (row) => row.children[column].textContent.trim();
    const order = isNumber ? (a, b) => amount(of(a)) - amount(of(b)) : (a, b) => of(a).localeCompare(of(b));
    const rows = [...table.tBodies[0].rows].sort((a, b) => (isDown ? order(b, a) : order(a, b)));
    for (const other of cell.parentElement.children) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", isDown ? "descending" : "ascending");
    table.tBodies[0].append(...rows);
  });
}
