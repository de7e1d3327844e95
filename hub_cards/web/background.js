/** Starts the worker; returns a function that gives it a task and promises { result, seconds }, or an error. */
export function startWorker() {
  const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  const waiting = new Map();
  let tasks = 0;
  worker.onmessage = ({ data: { id, result, seconds, error } }) => {
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (error === undefined) resolve({ result, seconds });
    else reject(new Error(error));
  };
  worker.onerror = () => {
    waiting.forEach(({ reject }) => reject(new Error("this browser cannot run the codec; a newer one can")));
  };
  return (task, argument) =>
    new Promise((resolve, reject) => {
      waiting.set(++tasks, { resolve, reject });
      worker.postMessage({ id: tasks, task, argument });
    });
}
