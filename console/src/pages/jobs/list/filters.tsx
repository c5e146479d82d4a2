/** Sets the filters of the list, which the address keeps. */

import {
  Autocomplete, Button, Collapse, Group, MultiSelect, Paper, Select, SimpleGrid, TagsInput, TextInput,
} from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import { IconAdjustmentsHorizontal, IconSearch, IconX } from "@tabler/icons-react";
import { type KeyboardEvent, useState } from "react";

import { useStrings } from "#/language";

import { strings } from "../strings";
import { KINDS, STATUSES } from "../types";
import {
  type FilterName, fromLocalTime, readMetadata, toFilter, toLocalTime, withFilter, withMetadata,
} from "./address";
import { useTemplateNames } from "./queries";

interface Props {
  address: URLSearchParams;
  onChange: (address: URLSearchParams) => void;
}

const MORE: readonly FilterName[] = ["pool", "template", "created_after", "created_before"];

export function Filters({ address, onChange }: Props) {
  const t = useStrings(strings);
  const hidden = MORE.filter((name) => address.has(name)).length + readMetadata(address).length;
  const [opened, { toggle }] = useDisclosure(hidden > 0);
  const set = (name: FilterName, value: string | null) => onChange(withFilter(address, name, value));
  return (
    <Paper withBorder p="sm" mb="md" component="search" aria-label={t.filters} display="block">
      <Group align="flex-end" gap="sm">
        <WrittenFilter
          name="search" label={t.search} placeholder={t.searchHint} address={address} onSet={set} grow
        />
        <MultiSelect
          label={t.status} w={230} value={address.get("status")?.split(",") ?? []} clearable
          placeholder={address.has("status") ? undefined : t.any}
          data={STATUSES.map((value) => ({ value, label: t[value] }))}
          onChange={(values) => set("status", values.join(","))}
        />
        <Select
          label={t.kind} w={150} placeholder={t.any} value={address.get("kind")} clearable
          data={KINDS.map((value) => ({ value, label: t[value] }))} onChange={(value) => set("kind", value)}
        />
        <Button
          variant="default" aria-expanded={opened} onClick={toggle}
          leftSection={<IconAdjustmentsHorizontal size={16} aria-hidden />}
        >
          {t.moreFilters}{hidden > 0 ? ` (${hidden})` : ""}
        </Button>
        {Object.keys(toFilter(address)).length > 0 && (
          <Button
            variant="default" leftSection={<IconX size={16} aria-hidden />}
            onClick={() => onChange(new URLSearchParams())}
          >
            {t.clear}
          </Button>
        )}
      </Group>
      <Collapse expanded={opened}>
        {opened && <MoreFilters address={address} onChange={onChange} />}
      </Collapse>
    </Paper>
  );
}

function MoreFilters({ address, onChange }: Props) {
  const t = useStrings(strings);
  const [wrong, setWrong] = useState(false);
  const templates = useTemplateNames(true);
  const set = (name: FilterName, value: string | null) => onChange(withFilter(address, name, value));
  const setMetadata = (pairs: string[]) => {
    const right = pairs.filter((pair) => pair.indexOf("=") > 0);
    setWrong(right.length < pairs.length);
    onChange(withMetadata(address, right));
  };
  return (
    <SimpleGrid cols={{ base: 1, xs: 2, lg: 5 }} mt="sm" spacing="sm">
      <WrittenFilter name="pool" label={t.pool} address={address} onSet={set} />
      <TemplateFilter key={address.get("template")} names={templates} address={address} onSet={set} />
      <TimeFilter name="created_after" label={t.createdAfter} address={address} onSet={set} />
      <TimeFilter name="created_before" label={t.createdBefore} address={address} onSet={set} />
      <TagsInput
        label={t.metadata} placeholder={t.metadataHint} value={readMetadata(address)} splitChars={[","]}
        maxTags={16} error={wrong && t.metadataError} onChange={setMetadata}
      />
    </SimpleGrid>
  );
}

interface FilterProps {
  address: URLSearchParams;
  onSet: (name: FilterName, value: string | null) => void;
}

/** Sets its filter when the field is left or Enter is pressed, and not with every letter. */
function WrittenFilter({ name, label, placeholder, address, onSet, grow }: FilterProps & {
  name: FilterName; label: string; placeholder?: string; grow?: boolean;
}) {
  const value = address.get(name) ?? "";
  const finish = (written: string) => {
    if (written.trim() !== value) onSet(name, written.trim());
  };
  return (
    <TextInput
      key={value} label={label} placeholder={placeholder} defaultValue={value} maxLength={256}
      style={grow ? { flex: "1 1 220px" } : undefined}
      leftSection={name === "search" ? <IconSearch size={16} aria-hidden /> : undefined}
      onBlur={(event) => finish(event.currentTarget.value)}
      onKeyDown={(event) => event.key === "Enter" && !event.nativeEvent.isComposing && finish(event.currentTarget.value)}
    />
  );
}

function TemplateFilter({ names, address, onSet }: FilterProps & { names: string[] }) {
  const t = useStrings(strings);
  const value = address.get("template") ?? "";
  const finish = (written: string) => {
    if (written.trim() !== value) onSet("template", written.trim());
  };
  return (
    <Autocomplete
      label={t.template} defaultValue={value} data={names} limit={50} onOptionSubmit={finish}
      onBlur={(event) => finish(event.currentTarget.value)}
      onKeyDown={(event: KeyboardEvent<HTMLInputElement>) => event.key === "Enter" && finish(event.currentTarget.value)}
    />
  );
}

function TimeFilter({ name, label, address, onSet }: FilterProps & { name: FilterName; label: string }) {
  const value = address.get(name);
  return (
    <TextInput
      key={value} type="datetime-local" label={label} defaultValue={toLocalTime(value)}
      onBlur={(event) => {
        const written = event.currentTarget.value;
        if (written !== toLocalTime(value)) onSet(name, fromLocalTime(written));
      }}
    />
  );
}
