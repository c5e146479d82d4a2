/** The control of one input of a template, by its JSON Schema. */

import { Button, FileButton, Group, Image, Input, Loader, NumberInput, Select, Stack, Switch, Text, Textarea, TextInput } from "@mantine/core";
import { IconPhotoUp } from "@tabler/icons-react";
import { useMutation } from "@tanstack/react-query";

import { call } from "#/api/client";
import { ErrorAlert } from "#/components/error-alert";
import { useFormat, useStrings } from "#/language";

import { showScalar } from "./exact-json";
import type { InputSchema, Problem } from "./schema";
import { type RenderStrings, strings } from "./strings";

type Format = ReturnType<typeof useFormat>;

interface Props {
  name: string;
  schema: InputSchema;
  required: boolean;
  value: string | boolean;
  problem: Problem | undefined;
  onChange: (value: string | boolean) => void;
}

export function InputField({ name, schema, required, value, problem, onChange }: Props) {
  const t = useStrings(strings);
  const format = useFormat();
  const bounds = describeBounds(schema, t, format);
  const common = {
    label: schema.title ?? name,
    description: [schema.description, bounds].filter(Boolean).join(" · ") || undefined,
    error: problem && describeProblem(problem, t, format),
    required,
  };
  if (schema.type === "boolean") {
    const { label, description, error } = common;
    return (
      <Switch label={label} description={description} error={error} checked={value === true}
        onChange={(event) => onChange(event.currentTarget.checked)} />
    );
  }
  const text = String(value);
  if (schema.format === "image") return <PictureField {...common} value={text} onChange={onChange} />;
  if (schema.enum) {
    return (
      <Select {...common} data={schema.enum.map(showScalar)} value={text || null} clearable={!required}
        onChange={(chosen) => onChange(chosen ?? "")} />
    );
  }
  const placeholder = schema.examples?.[0] === undefined ? undefined : showScalar(schema.examples[0]);
  if (schema.type === "string") {
    return (schema.maxLength ?? Infinity) > 120 ? (
      <Textarea {...common} placeholder={placeholder} value={text} autosize minRows={2} maxRows={10}
        onChange={(event) => onChange(event.currentTarget.value)} />
    ) : (
      <TextInput {...common} placeholder={placeholder} value={text} onChange={(event) => onChange(event.currentTarget.value)} />
    );
  }
  // Numbers beyond 2^53, as seeds may be, stay text: a number would lose digits.
  if (schema.type === "integer" && !Number.isSafeInteger(schema.maximum ?? 2 ** 60)) {
    return (
      <TextInput {...common} inputMode="numeric" placeholder={placeholder} value={text}
        onChange={(event) => onChange(event.currentTarget.value)} />
    );
  }
  return (
    <NumberInput {...common} placeholder={placeholder} value={text === "" ? "" : Number(text)}
      min={schema.minimum} max={schema.maximum} step={schema.multipleOf ?? (schema.type === "integer" ? 1 : 0.1)}
      clampBehavior="none" allowDecimal={schema.type === "number"} onChange={(entered) => onChange(String(entered))} />
  );
}

interface PictureProps {
  label: string;
  description: string | undefined;
  error: string | undefined;
  required: boolean;
  value: string;
  onChange: (value: string) => void;
}

/** Uploads a picture, of which the input takes the id. */
function PictureField({ label, description, error, required, value, onChange }: PictureProps) {
  const t = useStrings(strings);
  const upload = useMutation({
    mutationFn: async (file: File) => {
      const response = await call(`/artifacts?name=${encodeURIComponent(file.name)}`, {
        method: "POST", body: file, headers: { "content-type": file.type || "application/octet-stream" },
      });
      return ((await response.json()) as { id: string }).id;
    },
    onSuccess: onChange,
  });
  const id = value.replace(/^artifact:/, "");
  return (
    <Input.Wrapper label={label} description={description} error={error} required={required} labelElement="div">
      <Stack gap="xs" mt={4}>
        {id.startsWith("art_") && (
          <Image src={`/artifacts/${id}?w=256`} alt={t.chosenPicture} w="auto" mah={160} maw="100%" fit="contain" radius="sm" />
        )}
        {value !== "" && !id.startsWith("art_") && <Text size="sm">{value}</Text>}
        <Group gap="xs">
          <FileButton accept="image/*" onChange={(file) => file && upload.mutate(file)}>
            {(props) => (
              <Button {...props} variant="default" size="xs" leftSection={<IconPhotoUp size={16} aria-hidden />}
                disabled={upload.isPending} aria-label={`${label}: ${t.choosePicture}`}>
                {t.choosePicture}
              </Button>
            )}
          </FileButton>
          {value !== "" && <Button variant="subtle" size="xs" onClick={() => onChange("")}>{t.removePicture}</Button>}
          {upload.isPending && <Group gap={6}><Loader size="xs" /><Text size="xs">{t.uploading}</Text></Group>}
        </Group>
        {upload.error && <ErrorAlert error={upload.error} />}
      </Stack>
    </Input.Wrapper>
  );
}

export function describeProblem(problem: Problem, t: RenderStrings, format: Format): string {
  const said = t[problem.kind];
  return typeof said === "string" ? said : said("bound" in problem ? format.number(problem.bound) : "");
}

function describeBounds({ type, minimum, maximum }: InputSchema, t: RenderStrings, format: Format): string | undefined {
  if (type !== "integer" && type !== "number") return undefined;
  const show = (value: number) => (Number.isSafeInteger(value) || Math.abs(value) < 2 ** 53 ? format.number(value) : "2⁶⁴ − 1");
  if (minimum !== undefined && maximum !== undefined) return t.range(show(minimum), show(maximum));
  if (minimum !== undefined) return t.atLeast(show(minimum));
  return maximum === undefined ? undefined : t.atMost(show(maximum));
}
