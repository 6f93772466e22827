// minqElement("button", { className: "x", onclick: f }, "text", child) makes an element: its properties, its children.
// null among the children is left out.
window.minqElement = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null));
  return element;
};
