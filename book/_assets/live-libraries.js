// A Python whose memory was kept after it had imported shared libraries needs these at the very places, in memory and
// in the table of functions, where they were. They get the same places if they are loaded in the same order before
// Python begins: in ready.mjs, which keeps the memory, and in live-worker.js, which restores it.
//
//   minqLibraries.site                   the folder of packages
//   minqLibraries.before(libraries, main)   makes the next Pyodide load them: [[path in site, promise of its
//                                        WebAssembly.Module], ...]; main: a promise of Pyodide's own
//   minqLibraries.opened(pyodide)        { path in site: handle } of those that Python has opened, in order
//   minqLibraries.open(pyodide, handles) the same for a Python whose memory was restored
globalThis.minqLibraries = (() => {
  "use strict";
  const FIRST = 12_288; // where the libraries' functions begin in the table; Pyodide's own need some 11,917
  const site = "/lib/python3.12/site-packages";
  return {
    site,
    before(libraries, main) {
      const make = globalThis._createPyodideModule;
      globalThis._createPyodideModule = (settings) => {
        globalThis._createPyodideModule = make;
        return new Promise((done, fail) => {
          if (main) settings.instantiateWasm = (imports, receive) => {
            main.then(async (code) => receive(await WebAssembly.instantiate(code, imports), code)).catch(fail);
            return {};
          };
          const load = async (module) => {
            await Promise.all(libraries.map(([, code]) => code));
            module.wasmTable.grow(FIRST - module.wasmTable.length); // browsers differ in what they put in before
            for (const [path, code] of libraries) {
              const place = `${site}/${path}`;
              module.preloadedWasm[place] = module.loadWebAssemblyModule(await code, { nodelete: true }, place, {});
            }
            module.removeRunDependency("libraries");
          };
          settings.preRun.push((module) => {
            module.addRunDependency("libraries");
            load(module).catch(fail);
          });
          make(settings).then(done, fail);
        });
      };
    },
    opened({ _module: { LDSO } }) {
      const handles = Object.entries(LDSO.loadedLibsByHandle).map(([handle, { name }]) => [name, +handle]);
      const order = Object.keys(LDSO.loadedLibsByName), ours = handles.filter(([name]) => name.startsWith(site));
      return Object.fromEntries(ours.sort(([a], [b]) => order.indexOf(a) - order.indexOf(b))
        .map(([name, handle]) => [name.slice(site.length + 1), handle]));
    },
    open({ _module: module }, handles) {
      for (const [path, handle] of Object.entries(handles)) {
        const place = `${site}/${path}`;
        module.newDSO(place, handle, module.preloadedWasm[place]).global = false;
      }
    },
  };
})();
