/** What the gallery shows: kind, project, template, person, days, favourites. */

import { Button, Group, Select, Switch, TextInput } from "@mantine/core";
import { useDebouncedCallback } from "@mantine/hooks";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { body, gateway } from "#/api/client";
import type { Caller } from "#/api/session";
import { useStrings } from "#/language";

import { type GalleryFilter, isFiltered } from "./data";
import { PersonSelect } from "./person-select";
import { strings } from "./strings";

interface Props {
  filter: GalleryFilter;
  caller: Caller;
  onChange: (change: Partial<Record<keyof GalleryFilter, string>>) => void;
  onClear: () => void;
}

export function Filters({ filter, caller, onChange, onClear }: Props) {
  const t = useStrings(strings);
  return (
    <Group gap="sm" align="flex-end" mb="md" role="search" aria-label={t.filters}>
      <Select
        label={t.kind} w={150} allowDeselect={false} value={filter.kind}
        data={Object.entries(t.kinds).map(([value, label]) => ({ value, label }))}
        onChange={(kind) => onChange({ kind: kind === "image" ? "" : kind ?? "" })}
      />
      <ProjectInput key={filter.project} value={filter.project} onChange={(project) => onChange({ project })} />
      <TemplateSelect value={filter.template} onChange={(template) => onChange({ template })} />
      <PersonSelect caller={caller} value={filter.user} onChange={(user) => onChange({ user })} />
      <TextInput
        label={t.after} type="date" w={150} value={filter.after}
        onChange={(event) => onChange({ after: event.currentTarget.value })}
      />
      <TextInput
        label={t.before} type="date" w={150} value={filter.before}
        onChange={(event) => onChange({ before: event.currentTarget.value })}
      />
      <Switch
        label={t.favourites} checked={filter.favourite} mb={8}
        onChange={(event) => onChange({ favourite: event.currentTarget.checked ? "true" : "" })}
      />
      {isFiltered(filter) && <Button variant="subtle" size="sm" onClick={onClear}>{t.clear}</Button>}
    </Group>
  );
}

/** Waits for a pause in typing before it asks the server. */
function ProjectInput({ value, onChange }: { value: string; onChange: (value: string) => void }) {
  const t = useStrings(strings);
  const [text, setText] = useState(value);
  const change = useDebouncedCallback(onChange, 500);
  return (
    <TextInput
      label={t.project} w={150} maxLength={1024} value={text}
      onChange={(event) => {
        setText(event.currentTarget.value);
        change(event.currentTarget.value);
      }}
    />
  );
}

/** Asks for the templates when somebody comes to it, or one is chosen, and not before the pictures. */
function TemplateSelect({ value, onChange }: { value: string; onChange: (value: string) => void }) {
  const t = useStrings(strings);
  const [isReached, setReached] = useState(false);
  const { data } = useQuery({
    queryKey: ["templates"],
    enabled: isReached || value !== "",
    queryFn: async () => (await body(gateway.GET("/templates"))).templates,
  });
  return (
    <Select
      label={t.template} placeholder={t.anyTemplate} w={190} clearable searchable onFocus={() => setReached(true)}
      data={data?.map(({ name, title }) => ({ value: name, label: title })) ?? []}
      value={value || null} onChange={(template) => onChange(template ?? "")}
    />
  );
}
