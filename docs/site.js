// What the theme adds to code blocks gets names and can be reached with the keyboard.
const mend = () => {
  document.querySelectorAll("nav.md-code__nav").forEach((nav, i) => { nav.ariaLabel = `Code block ${i + 1}`; });
  for (const code of document.querySelectorAll("pre > code, .md-typeset__scrollwrap")) code.tabIndex = 0;
};
new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
mend();
