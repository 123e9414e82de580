// Long tables can be sorted by a click on a heading, and searched; a deck's are split instead. Reads without this.
(() => {
  const number = text => text && Number(text.replaceAll('\u2009', ''));
  const value = cell => {
    const text = cell.textContent.trim(), held = cell.querySelector('data');
    return held ? Number(held.value) : Number.isFinite(number(text)) && text ? number(text) : text;
  };
  const order = (a, b) => typeof a === 'number' && typeof b === 'number' ? a - b : String(a).localeCompare(String(b));
  for (const box of document.querySelectorAll('.table:not(.searched)')) {
    const rows = [...box.querySelectorAll('tbody tr:not(.theme)')];
    if (rows.length < 12 || box.closest('.reveal') || box.querySelector('tbody [rowspan]')) continue;
    box.classList.add('searched');
    const filter = Object.assign(document.createElement('input'), {type: 'search', placeholder: '⌕'});
    filter.setAttribute('aria-label', '⌕');
    filter.addEventListener('input', () => {
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(filter.value.toLowerCase());
    });
    box.prepend(filter);
    for (const [column, head] of [...box.querySelectorAll('thead tr:first-child th')].entries()) {
      let way = -1;
      head.classList.add('sortable');
      head.tabIndex = 0;
      const sort = () => {
        way = -way;
        for (const body of box.querySelectorAll('tbody'))
          [...body.querySelectorAll('tr:not(.theme)')]
            .sort((a, b) => way * order(value(a.cells[column]), value(b.cells[column])))
            .forEach(row => body.append(row));
      };
      head.addEventListener('click', sort);
      head.addEventListener('keydown', event => event.key === 'Enter' && sort());
    }
  }
})();
