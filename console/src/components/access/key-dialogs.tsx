/** Forms that create a key and that replace its secret. */

import { Button, Group, Modal, MultiSelect, Select, Stack, Text, TextInput } from "@mantine/core";
import { type FormEvent, type ReactNode, useState } from "react";

import { accounts, body } from "#/api/client";
import { type Caller, hasScope } from "#/api/session";
import { strings } from "#/components/access/strings";
import { ErrorAlert } from "#/components/error-alert";
import { useStrings } from "#/language";

const SCOPES = ["text", "jobs:read", "jobs:write", "player", "org:read", "keys", "org:admin", "metrics", "operator", "*"];

interface DialogProps {
  opened: boolean;
  onClose: () => void;
  title: string;
  action: string;
  onSubmit: (form: FormData) => Promise<unknown>;
  children: ReactNode;
}

/** A form in a dialog, which stays open with the error if the server refuses it. */
export function FormDialog({ opened, onClose, title, action, onSubmit, children }: DialogProps) {
  const t = useStrings(strings);
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  const close = () => {
    setError(null);
    onClose();
  };
  const submit = async (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      await onSubmit(new FormData(event.currentTarget));
      onClose();
    } catch (failure) {
      setError(failure as Error);
    } finally {
      setBusy(false);
    }
  };
  return (
    <Modal opened={opened} onClose={close} title={title} centered closeButtonProps={{ "aria-label": t.close }}>
      <form onSubmit={(event) => void submit(event)}>
        <Stack>
          {error && <ErrorAlert error={error} />}
          {children}
          <Group justify="flex-end">
            <Button variant="default" onClick={close}>{t.cancel}</Button>
            <Button type="submit" loading={busy}>{action}</Button>
          </Group>
        </Stack>
      </form>
    </Modal>
  );
}

interface CreateProps {
  opened: boolean;
  onClose: () => void;
  /** Who creates the key, which gets no scope that this caller lacks. */
  caller: Caller;
  /** The service account that the key belongs to; left out: the caller. */
  user?: string | undefined;
  onCreated: (secret: string) => void;
}

export function CreateKey({ opened, onClose, caller, user, onCreated }: CreateProps) {
  const t = useStrings(strings);
  const [chosen, setChosen] = useState<string[]>([]);
  const create = async (form: FormData) => {
    const day = `${form.get("expires")}`;
    const created = await body(accounts.POST("/keys", {
      body: {
        name: `${form.get("name")}`.trim(),
        ...(chosen.length > 0 && { scopes: chosen }),
        // The end of the day, where the person is.
        ...(day && { expires_at: new Date(`${day}T23:59:59`).toISOString() }),
        ...(user !== undefined && { user }),
      },
    }));
    setChosen([]);
    onCreated(created.key);
  };
  const offered = SCOPES.filter((scope) => hasScope(caller, scope));
  return (
    <FormDialog opened={opened} onClose={onClose} title={t.newKey} action={t.create} onSubmit={create}>
      <TextInput name="name" label={t.keyName} description={t.keyNameHint} maxLength={128} required data-autofocus />
      <MultiSelect
        label={t.scopes} description={t.scopesHint} data={offered} value={chosen} onChange={setChosen} clearable
      />
      <TextInput name="expires" type="date" label={t.expires} description={t.expiresHint} min={nextDay()} />
    </FormDialog>
  );
}

function nextDay(): string {
  const day = new Date(Date.now() + 86_400_000);
  return `${day.getFullYear()}-${`${day.getMonth() + 1}`.padStart(2, "0")}-${`${day.getDate()}`.padStart(2, "0")}`;
}

interface RotateProps {
  /** The key; `null`: the dialog is closed. */
  id: string | null;
  onClose: () => void;
  onRotated: (secret: string) => void;
}

export function RotateKey({ id, onClose, onRotated }: RotateProps) {
  const t = useStrings(strings);
  const rotate = async (form: FormData) => {
    const rotated = await body(accounts.POST("/keys/{key}/rotate", {
      params: { path: { key: id ?? "" } }, body: { overlap_seconds: Number(form.get("overlap")) },
    }));
    onRotated(rotated.key);
  };
  return (
    <FormDialog opened={id !== null} onClose={onClose} title={t.rotateTitle} action={t.rotate} onSubmit={rotate}>
      <Text size="sm">{t.rotateExplanation}</Text>
      <Select
        name="overlap" label={t.overlap} defaultValue="3600" allowDeselect={false}
        data={Object.entries(t.overlaps).map(([value, label]) => ({ value, label }))}
      />
    </FormDialog>
  );
}
