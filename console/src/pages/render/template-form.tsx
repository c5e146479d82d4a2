/** Chooses a template and fills in its inputs. */

import { Select, Stack, Text } from "@mantine/core";

import { hasScope, useCaller } from "#/api/session";
import { EmptyState } from "#/components/empty-state";
import { useStrings } from "#/language";

import { InputField } from "./input-field";
import type { Problems, Template } from "./request";
import { isRequired, listSchemas, type Values } from "./schema";
import { strings } from "./strings";

interface Props {
  templates: Template[];
  template: Template | null;
  values: Values;
  problems: Problems;
  onTemplate: (template: Template) => void;
  onValue: (name: string, value: string | boolean) => void;
}

export function TemplateForm({ templates, template, values, problems, onTemplate, onValue }: Props) {
  const t = useStrings(strings);
  const { data: caller } = useCaller();
  if (templates.length === 0) return <EmptyState title={t.noTemplates}>{t.noTemplatesHint}</EmptyState>;
  return (
    <Stack gap="sm">
      <Select
        label={t.template} description={caller && hasScope(caller, "operator") && t.addTemplates} searchable allowDeselect={false} value={template?.name ?? null}
        data={templates.map(({ name, title }) => ({ value: name, label: title === name ? name : `${title} (${name})` }))}
        onChange={(name) => {
          const chosen = templates.find((item) => item.name === name);
          if (chosen) onTemplate(chosen);
        }}
      />
      {template?.description && <Text size="sm" c="dimmed">{template.description}</Text>}
      {template && listSchemas(template.inputs).map(([name, schema]) => (
        <InputField
          key={`${template.name}.${name}`} name={name} schema={schema} required={isRequired(template.inputs, name)}
          value={values[name] ?? ""} problem={problems[name]} onChange={(value) => onValue(name, value)}
        />
      ))}
    </Stack>
  );
}
