/** Makes a link to a file that works without an account until it expires. */

import { Button, CopyButton, Group, Modal, Select, Stack, Text, TextInput } from "@mantine/core";
import { IconCheck, IconCopy } from "@tabler/icons-react";
import { useMutation } from "@tanstack/react-query";
import { useEffect, useRef, useState } from "react";

import { body, gateway } from "#/api/client";
import { ErrorAlert } from "#/components/error-alert";
import { useFormat, useStrings } from "#/language";

import { strings } from "./strings";
import type { PictureFile } from "./thumbnail";

export function Share({ file, onClose }: { file: PictureFile; onClose: () => void }) {
  const t = useStrings(strings);
  const format = useFormat();
  const [seconds, setSeconds] = useState("3600");
  const link = useMutation({
    mutationFn: () => body(gateway.POST("/artifacts/{artifact_id}/link", {
      params: { path: { artifact_id: file.id } }, body: { expires_in: Number(seconds) },
    })),
  });
  const copyButton = useRef<HTMLButtonElement>(null);
  useEffect(() => {
    // What comes next for the keyboard: the link is there to be copied.
    if (link.isSuccess) copyButton.current?.focus();
  }, [link.isSuccess]);
  const address = link.data && new URL(link.data.url, location.origin).href;
  return (
    <Modal opened onClose={onClose} title={t.shareTitle} centered closeButtonProps={{ "aria-label": t.close }}>
      <Stack>
        <Text size="sm">{t.shareHint}</Text>
        <Group align="flex-end">
          <Select
            label={t.expires} allowDeselect={false} value={seconds} flex={1}
            data={Object.entries(t.expiries).map(([value, label]) => ({ value, label }))}
            onChange={(value) => {
              setSeconds(value ?? seconds);
              link.reset();
            }}
          />
          <Button data-autofocus onClick={() => link.mutate()} loading={link.isPending}>{t.makeLink}</Button>
        </Group>
        {link.error && <ErrorAlert error={link.error} />}
        {link.data && address && (
          <>
            <Group align="flex-end" wrap="nowrap">
              <TextInput label={t.link} value={address} readOnly flex={1} onFocus={(event) => event.currentTarget.select()} />
              <CopyButton value={address}>
                {({ copied, copy }) => (
                  <Button ref={copyButton} variant="default" onClick={copy} leftSection={copied ? <IconCheck size={16} /> : <IconCopy size={16} />}>
                    {copied ? t.copied : t.copy}
                  </Button>
                )}
              </CopyButton>
            </Group>
            <Text size="sm" c="dimmed">{t.expiresAt(format.time(link.data.expires_at))}</Text>
          </>
        )}
      </Stack>
    </Modal>
  );
}
