/** Makes a render or a batch of renders from a template or a graph, and shows what becomes of it. */

import { Alert, Button, Grid, Paper, SegmentedControl, Skeleton, Stack, Title } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useEffect, useRef, useState } from "react";
import { Link, useSearchParams } from "wouter";

import { body, call, gateway } from "#/api/client";
import { hasScope, useCaller } from "#/api/session";
import { EmptyState } from "#/components/empty-state";
import { ErrorAlert } from "#/components/error-alert";
import { PageHeader } from "#/components/page-header";
import { useFormat, useStrings } from "#/language";
import type { PictureFile } from "#/pages/gallery/thumbnail";
import { Viewer } from "#/pages/gallery/viewer";

import { ContactSheet } from "./contact-sheet";
import { type Draft, readDraft } from "./draft";
import { Estimate } from "./estimate";
import type { GraphFile } from "./graph";
import { GraphDrop } from "./graph-drop";
import { NodeErrors } from "./node-errors";
import { isPast, isPoolName, OptionsForm } from "./options-form";
import { buildJob, canVarySeeds, countRenders, listVariables, MAX_CHILDREN, type Options, type Problems, type Template, type Variants, type Work } from "./request";
import { fillValues, type Values } from "./schema";
import { strings } from "./strings";
import { TemplateForm } from "./template-form";
import { VariantsForm } from "./variants-form";

const NO_VARIANTS: Variants = { mode: "one", seeds: 4, sweep: [] };
const NO_OPTIONS: Options = { pool: "", priority: 3, deadline: "", project: "", cache: true };

export default function RenderPage() {
  const t = useStrings(strings);
  const [search, setSearch] = useSearchParams();
  const [from, result] = [search.get("job"), search.get("result")];
  const [opened, setOpened] = useState<PictureFile | null>(null);
  const results = useRef<HTMLHeadingElement>(null);
  const { data: caller } = useCaller();
  const templates = useQuery({
    queryKey: ["templates"], queryFn: async () => (await body(gateway.GET("/templates"))).templates,
  });
  const draft = useQuery({
    queryKey: ["render", "draft", from], enabled: from !== null, staleTime: Infinity, queryFn: () => readDraft(from!),
  });
  const error = templates.error ?? draft.error;
  const isReady = templates.data !== undefined && (from === null || draft.data !== undefined);
  return (
    <>
      <PageHeader title={t.title}>
        <Button component={Link} href="/gallery" variant="default" size="xs">{t.openGallery}</Button>
      </PageHeader>
      <Grid gap="lg">
        {caller && hasScope(caller, "jobs:write") && (
          <Grid.Col span={{ base: 12, lg: 5 }}>
            {error && <ErrorAlert error={error} onRetry={() => void (templates.error ? templates : draft).refetch()} />}
            {!error && !isReady && <Skeleton h={400} />}
            {!error && isReady && (
              <RenderForm
                key={from} templates={templates.data} draft={draft.data ?? null}
                onSubmitted={(id) => {
                  setSearch((old) => {
                    old.set("result", id);
                    return old;
                  });
                  // On a small window they are below the form.
                  results.current?.focus();
                }}
              />
            )}
          </Grid.Col>
        )}
        <Grid.Col span={{ base: 12, lg: 7 }} className="beside-form">
          <Title order={3} size="h4" mb="sm" ref={results} tabIndex={-1} className="below-header">{t.results}</Title>
          {result === null
            ? <Paper withBorder><EmptyState title={t.noResults}>{t.noResultsHint}</EmptyState></Paper>
            : <ContactSheet key={result} id={result} onOpen={setOpened} />}
        </Grid.Col>
      </Grid>
      {opened && <Viewer files={[opened]} file={opened} onShow={setOpened} onClose={() => setOpened(null)} />}
    </>
  );
}

interface FormProps {
  templates: Template[];
  draft: Draft | null;
  onSubmitted: (id: string) => void;
}

function RenderForm({ templates, draft, onSubmitted }: FormProps) {
  const t = useStrings(strings);
  const format = useFormat();
  const of = draft?.kind === "template" ? templates.find(({ name, aliases }) => name === draft.template || aliases.includes(draft.template)) : undefined;
  const [source, setSource] = useState<"template" | "graph">(draft?.kind === "graph" || templates.length === 0 ? "graph" : "template");
  const [template, setTemplate] = useState<Template | null>(of ?? templates[0] ?? null);
  const [values, setValues] = useState<Values>(() => (template ? fillValues(template.inputs, of && draft?.kind === "template" ? draft.inputs : {}) : {}));
  const [file, setFile] = useState<GraphFile | null>(draft?.kind === "graph" ? draft.file : null);
  const [variants, setVariants] = useState(NO_VARIANTS);
  const [options, setOptions] = useState<Options>({ ...NO_OPTIONS, ...draft?.options });
  const [problems, setProblems] = useState<Problems>({});
  const form = useRef<HTMLFormElement>(null);
  const sent = useRef({ text: "", key: "" });
  const submit = useMutation({
    mutationFn: async ({ text, key }: { text: string; key: string }) => {
      // The key makes a request that is sent twice one job.
      const headers = { "content-type": "application/json", "idempotency-key": key };
      return (await (await call("/jobs", { method: "POST", body: text, headers })).json()) as { id: string };
    },
    onSuccess: ({ id }) => {
      sent.current = { text: "", key: "" };
      onSubmitted(id);
    },
  });
  // A person who is told that a field is wrong is led to it.
  useEffect(() => {
    if (Object.keys(problems).length > 0) form.current?.querySelector<HTMLElement>("[aria-invalid=true]")?.focus();
  }, [problems]);

  let work: Work | null = null;
  if (source === "template" && template) work = { kind: "template", template, values };
  if (source === "graph" && file) work = { kind: "graph", graph: file.graph };
  const count = countRenders(variants);
  const reset = () => {
    setVariants(NO_VARIANTS);
    setProblems({});
    submit.reset();
  };
  const send = () => {
    if (work === null) return;
    const built = buildJob(work, variants, options);
    setProblems("problems" in built ? built.problems : {});
    if (!("body" in built)) return;
    const text = JSON.stringify(built.body);
    // A request whose answer was lost is sent again with its key. `randomUUID` would need HTTPS.
    if (sent.current.text !== text) {
      sent.current = { text, key: [...crypto.getRandomValues(new Uint32Array(4))].join("-") };
    }
    submit.mutate(sent.current);
  };
  return (
    <form
      ref={form} noValidate
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
    >
      <Stack gap="lg">
        {draft?.kind === "missing" && <Alert p="xs" color="orange" title={t.noSuchJob}>{t.noSuchJobHint}</Alert>}
        {draft?.kind === "none" && <Alert p="xs" color="orange">{t.notARender}</Alert>}
        {(draft?.kind === "template" || draft?.kind === "graph") && <Alert p="xs" color="blue">{t.fillFrom}</Alert>}
        {draft?.kind === "template" && !of && <Alert p="xs" color="orange">{t.unknownTemplate(draft.template)}</Alert>}
        <Stack gap="sm">
          <SegmentedControl
            fullWidth aria-label={t.source} value={source}
            data={[{ value: "template", label: t.fromTemplate }, { value: "graph", label: t.fromGraph }]}
            onChange={(chosen) => {
              setSource(chosen as "template" | "graph");
              reset();
            }}
          />
          {source === "template" ? (
            <TemplateForm
              templates={templates} template={template} values={values} problems={problems}
              onTemplate={(chosen) => {
                setTemplate(chosen);
                setValues(fillValues(chosen.inputs));
                reset();
              }}
              onValue={(name, value) => setValues((old) => ({ ...old, [name]: value }))}
            />
          ) : (
            <GraphDrop
              file={file}
              onFile={(chosen) => {
                setFile(chosen);
                reset();
              }}
            />
          )}
        </Stack>
        {work && (
          <>
            <Section title={t.variants}>
              <VariantsForm
                variants={variants} variables={listVariables(work)} hasSeed={canVarySeeds(work)} problems={problems}
                onChange={setVariants}
              />
            </Section>
            <Section title={t.options}><OptionsForm options={options} onChange={setOptions} /></Section>
            <Stack gap="xs">
              <Estimate template={work.kind === "template" ? work.template.name : null} count={count} />
              {count > MAX_CHILDREN && <Alert p="xs" color="orange" role="alert">{t.tooMany(format.number(MAX_CHILDREN))}</Alert>}
              {submit.error && <ErrorAlert error={submit.error} />}
              {submit.error && <NodeErrors error={submit.error} />}
              <Button
                type="submit" loading={submit.isPending}
                disabled={count < 1 || count > MAX_CHILDREN || !isPoolName(options.pool) || isPast(options.deadline)}
              >
                {t.submit(count, format.number(count))}
              </Button>
            </Stack>
          </>
        )}
      </Stack>
    </form>
  );
}

function Section({ title, children }: { title: string; children: React.ReactNode }) {
  return (
    <Stack gap="xs">
      <Title order={3} size="h5">{title}</Title>
      {children}
    </Stack>
  );
}
