import { Button, Group, Modal, Stack, Text } from "@mantine/core";
import { type ReactNode, useState } from "react";

import { ErrorAlert } from "#/components/error-alert";
import { useStrings } from "#/language";
import { strings } from "#/strings";

interface Props {
  opened: boolean;
  onClose: () => void;
  title: string;
  /** Says what will happen. */
  children: ReactNode;
  action: string;
  /** Nothing can be confirmed yet. */
  disabled?: boolean;
  /** Does it; the dialog stays open with the error if it fails. */
  onConfirm: () => Promise<unknown>;
}

/** Asks once before something is destroyed. */
export function Confirm({ opened, onClose, title, children, action, disabled = false, onConfirm }: Props) {
  const t = useStrings(strings);
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  const close = () => {
    setError(null);
    onClose();
  };
  const confirm = async () => {
    setBusy(true);
    setError(null);
    try {
      await onConfirm();
      onClose();
    } catch (failure) {
      setError(failure as Error);
    } finally {
      setBusy(false);
    }
  };
  return (
    <Modal opened={opened} onClose={close} title={title} centered closeButtonProps={{ "aria-label": t.cancel }}>
      <Stack>
        <Text size="sm" component="div">{children}</Text>
        {error && <ErrorAlert error={error} />}
        <Group justify="flex-end">
          <Button variant="default" onClick={close} data-autofocus>{t.cancel}</Button>
          <Button color="red.9" loading={busy} disabled={disabled} onClick={() => void confirm()}>{action}</Button>
        </Group>
      </Stack>
    </Modal>
  );
}
