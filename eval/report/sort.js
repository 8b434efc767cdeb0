"use strict";
// A click on a column's head sorts its table: numbers by their first number, words by the alphabet, dashes last.
const number = (text) => {
  const found = text.match(/^[<≤]?\s*([-+−]?[\d.]+(e[-+]?\d+)?)/i);
  return found ? parseFloat(found[1].replace("−", "-")) : NaN;
};
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    const cell = (row) => row.cells[column].textContent.trim();
    head.firstElementChild.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows];
      const said = rows.filter((row) => !["", "–"].includes(cell(row)));
      const numeric = said.every((row) => !Number.isNaN(number(cell(row))));
      const sign = down ? -1 : 1;
      said.sort((a, b) => sign * (numeric
        ? number(cell(a)) - number(cell(b))
        : cell(a).localeCompare(cell(b), "en", { numeric: true })));
      body.append(...said, ...rows.filter((row) => !said.includes(row)));
    });
  });
}
