/** Lets people try models: one, or two side by side. */

import { Button, Center, Collapse, Loader, SimpleGrid, Text } from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import { IconAdjustments, IconColumns2, IconTrash } from "@tabler/icons-react";
import { useEffect, useRef, useState } from "react";
import { useSearchParams } from "wouter";

import { answersChats, type TextModel, useTextModels } from "#/api/text-models";
import { Confirm } from "#/components/confirm";
import { EmptyState } from "#/components/empty-state";
import { ErrorAlert } from "#/components/error-alert";
import { PageHeader } from "#/components/page-header";
import { useStrings } from "#/language";

import { Composer, type Draft } from "./composer";
import { ExplainDialog } from "./explain";
import { PaneView } from "./pane";
import { buildRequest } from "./request";
import { findMistakes, SettingsPanel } from "./settings";
import { strings } from "./strings";
import { NO_SETTINGS } from "./types";
import { type Chat, useChat } from "./use-chat";

const NEAR_PIXELS = 80;

export default function ChatPage() {
  const t = useStrings(strings);
  const list = useTextModels();
  if (list.data === undefined) {
    return list.error ? <ErrorAlert error={list.error} /> : <Center h={200}><Loader /></Center>;
  }
  const models = list.data.filter(answersChats);
  if (models.length === 0) {
    return <><PageHeader title={t.title} /><EmptyState title={t.noModels}>{t.noModelsText}</EmptyState></>;
  }
  return <Playground models={models} />;
}

function Playground({ models }: { models: readonly TextModel[] }) {
  const t = useStrings(strings);
  const [search] = useSearchParams();
  const [settings, setSettings] = useState(NO_SETTINGS);
  const chat = useChat(settings, chooseFirst(models, search.get("model")));
  const [areSettingsOpen, { toggle: toggleSettings }] = useDisclosure();
  const [isClearing, { open: askToClear, close: closeClearing }] = useDisclosure();
  const [explained, setExplained] = useState<Record<string, unknown>[] | null>(null);

  const mistakes = findMistakes(settings);
  const isEmpty = chat.panes.every((pane) => pane.turns.length === 0);
  const takesPictures = chat.panes.every((pane) => models.find(({ id }) => id === pane.model)?.vision);
  const end = useFollowing(chat);

  const explain = ({ text, pictures }: Draft) => {
    setExplained(chat.panes.map((pane) =>
      buildRequest(pane.model, settings, [...pane.turns, { role: "user", id: "draft", text, pictures }])
    ));
  };
  const labels = chat.panes.length === 1 ? [t.model] : [t.firstModel, t.secondModel];
  return (
    <>
      <PageHeader title={t.title}>
        <Button
          variant={areSettingsOpen ? "light" : "default"} leftSection={<IconAdjustments size={16} />}
          aria-expanded={areSettingsOpen} onClick={toggleSettings}
        >
          {t.settings}
        </Button>
        {chat.panes.length === 1 && (
          <Button
            variant="default" leftSection={<IconColumns2 size={16} />}
            onClick={() => chat.addPane(chooseSecond(models, chat.panes[0]?.model))}
          >
            {t.compare}
          </Button>
        )}
        {!isEmpty && (
          <Button variant="default" leftSection={<IconTrash size={16} />} onClick={askToClear}>{t.clear}</Button>
        )}
      </PageHeader>
      <Collapse expanded={areSettingsOpen} keepMounted={false}>
        <SettingsPanel value={settings} onChange={setSettings} />
      </Collapse>
      <SimpleGrid cols={{ base: 1, sm: chat.panes.length }} spacing="xl">
        {chat.panes.map((pane, place) => (
          <PaneView
            key={pane.id} pane={pane} label={labels[place] ?? t.model} models={models} chat={chat}
            isRemovable={chat.panes.length > 1}
          />
        ))}
      </SimpleGrid>
      {isEmpty && <EmptyState title={t.emptyTitle}>{t.emptyText}</EmptyState>}
      {!isEmpty && <Text size="xs" c="dimmed" mt="md">{t.emptyText}</Text>}
      <Composer
        takesPictures={takesPictures} isBusy={chat.isBusy} canSend={!mistakes.tools && !mistakes.schema}
        onSend={({ text, pictures }) => chat.send(text, pictures)} onStop={chat.stopAll} onExplain={explain}
      />
      <div ref={end} />
      <ExplainDialog requests={explained} onClose={() => setExplained(null)} />
      <Confirm
        opened={isClearing} onClose={closeClearing} title={t.clearTitle} action={t.clear}
        onConfirm={async () => chat.clear()}
      >
        {t.clearText}
      </Confirm>
    </>
  );
}

/** Keep the end of the page in view while answers grow, unless the person has scrolled up. */
function useFollowing({ panes, isBusy }: Chat) {
  const end = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  const length = panes.reduce((sum, pane) => sum + pane.turns.length, 0);
  useEffect(() => {
    const note = () => {
      const { scrollHeight } = document.documentElement;
      follows.current = window.innerHeight + window.scrollY > scrollHeight - NEAR_PIXELS;
    };
    window.addEventListener("scroll", note, { passive: true });
    return () => window.removeEventListener("scroll", note);
  }, []);
  useEffect(() => {
    follows.current = true;
  }, [length]);
  useEffect(() => {
    if (length > 0 && follows.current) end.current?.scrollIntoView({ block: "end" });
  }, [panes, length, isBusy]);
  return end;
}

function chooseFirst(models: readonly TextModel[], wanted: string | null): string {
  const chosen = models.find(({ id }) => id === wanted) ?? models.find(({ status }) => status === "up") ?? models[0];
  return chosen?.id ?? "";
}

function chooseSecond(models: readonly TextModel[], first: string | undefined): string {
  return (models.find(({ id, status }) => id !== first && status === "up") ?? models[0])?.id ?? "";
}
