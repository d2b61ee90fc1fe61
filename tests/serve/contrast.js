// Texts on the page that cannot be read well: less than 4.5 to 1 against what is behind them (WCAG 2.2, 1.4.3).
() => {
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const rgb = (color) => color.match(/[\d.]+/g).slice(0, 3).map((c) => linear(Number(c) / 255));
  const luminance = (color) => rgb(color).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const background = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const color = getComputedStyle(each).backgroundColor;
      if (color !== "rgba(0, 0, 0, 0)") return color;
    }
    return "rgb(255, 255, 255)";
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const hasText = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!hasText || !element.checkVisibility() || ["OPTION", "title"].includes(element.tagName)) continue;
    const color = getComputedStyle(element)[element.ownerSVGElement ? "fill" : "color"];
    const [dark, light] = [luminance(color), luminance(background(element))].sort((one, other) => one - other);
    if ((light + 0.05) / (dark + 0.05) < 4.5) poor.push(`${element.tagName} ${element.getAttribute("class")} ${color}`);
  }
  return poor;
}
