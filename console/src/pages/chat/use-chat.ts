/** Holds the conversations of the page in memory, and runs the models' answers. */

import { useEffect, useMemo, useRef, useState } from "react";

import { buildRequest } from "./request";
import { streamAnswer } from "./stream";
import type { AnswerTurn, Pane, Settings, Turn, UserTurn } from "./types";

let lastId = 0;
const newId = () => `turn-${++lastId}`;

export type Chat = ReturnType<typeof useChat>;

export function useChat(settings: Settings, model: string) {
  const [panes, setPanes] = useState<readonly Pane[]>(() => [{ id: newId(), model, turns: [] }]);
  const current = useRef(panes);
  const latestSettings = useRef(settings);
  latestSettings.current = settings;
  const controllers = useRef(new Map<string, AbortController>());

  const acts = useMemo(() => {
    const update = (change: (panes: readonly Pane[]) => readonly Pane[]) => {
      current.current = change(current.current);
      setPanes(current.current);
    };
    const updatePane = (id: string, change: (pane: Pane) => Pane) => {
      update((all) => all.map((pane) => (pane.id === id ? change(pane) : pane)));
    };
    const stop = (id: string) => controllers.current.get(id)?.abort();

    /** Replace a pane's turns and let its model answer them. */
    const answer = (pane: Pane, turns: readonly Turn[]) => {
      stop(pane.id);
      const controller = new AbortController();
      controllers.current.set(pane.id, controller);
      const empty: AnswerTurn = {
        role: "assistant", id: newId(), state: "streaming", text: "", thoughts: "", calls: [], facts: {},
      };
      updatePane(pane.id, (old) => ({ ...old, turns: [...turns, empty] }));
      const request = buildRequest(pane.model, latestSettings.current, turns);
      void streamAnswer(request, empty, controller.signal, (news) => {
        updatePane(pane.id, (old) => ({
          ...old, turns: old.turns.map((turn) => (turn.id === news.id ? news : turn)),
        }));
      });
    };

    return {
      stopAll: () => controllers.current.forEach((controller) => controller.abort()),

      setModel: (id: string, model: string) => updatePane(id, (pane) => ({ ...pane, model })),

      /** Add a second model, which gets the next prompt, too. */
      addPane: (model: string) => update((all) => [...all, { id: newId(), model, turns: [] }]),

      removePane: (id: string) => {
        stop(id);
        update((all) => all.filter((pane) => pane.id !== id));
      },

      clear: () => {
        controllers.current.forEach((controller) => controller.abort());
        update((all) => all.map((pane) => ({ ...pane, turns: [] })));
      },

      /** Send a prompt to all panes. */
      send: (text: string, pictures: readonly string[]) => {
        const turn: UserTurn = { role: "user", id: newId(), text, pictures };
        for (const pane of current.current) answer(pane, [...pane.turns, turn]);
      },

      /** Replace an earlier prompt, and what followed it, in all panes that have it. */
      resend: (old: UserTurn, text: string) => {
        const turn: UserTurn = { ...old, id: newId(), text };
        for (const pane of current.current) {
          const place = pane.turns.findIndex(({ id }) => id === old.id);
          if (place >= 0) answer(pane, [...pane.turns.slice(0, place), turn]);
        }
      },

      /** Ask one pane's model again for its last answer. */
      retry: (pane: Pane) => answer(pane, pane.turns.slice(0, -1)),

      /** Give a model the results of the calls in its last answer. */
      sendResults: (pane: Pane, results: readonly { id: string; content: string }[]) => {
        answer(pane, [...pane.turns, { role: "tool", id: newId(), results }]);
      },
    };
  }, []);

  useEffect(() => acts.stopAll, [acts]);
  return { panes, isBusy: panes.some(isAnswering), ...acts };
}

export function isAnswering(pane: Pane): boolean {
  const last = pane.turns.at(-1);
  return last?.role === "assistant" && last.state === "streaming";
}
