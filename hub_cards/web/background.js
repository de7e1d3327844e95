/** Starts the worker; returns a function that gives it a task and promises { result, seconds }, or an error. */
export function startWorker() {
  const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  const waiting = new Map();
  let tasks = 0;
  let broken = null; // an error, once the worker cannot do anything any more
  worker.onmessage = ({ data: { id, result, seconds, error } }) => {
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (error === undefined) resolve({ result, seconds });
    else reject(new Error(error));
  };
  worker.onerror = () => {
    broken = new Error("this browser cannot run the codec; update it or use another one");
    waiting.forEach(({ reject }) => reject(broken));
  };
  return (task, argument, transfer = []) =>
    new Promise((resolve, reject) => {
      if (broken) return reject(broken);
      waiting.set(++tasks, { resolve, reject });
      worker.postMessage({ id: tasks, task, argument }, transfer);
    });
}
