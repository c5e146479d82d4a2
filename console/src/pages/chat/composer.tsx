import { ActionIcon, Box, Button, CloseButton, FileButton, Group, Image, Text, Textarea, Tooltip } from "@mantine/core";
import { IconPhoto, IconPlayerStopFilled, IconSend } from "@tabler/icons-react";
import { type ClipboardEvent, type KeyboardEvent, useState } from "react";

import { useStrings } from "#/language";

import { strings } from "./strings";

const MAX_PICTURES = 4;
const MAX_BYTES = 4 * 1024 * 1024;

export interface Draft {
  text: string;
  pictures: readonly string[];
}

interface Props {
  takesPictures: boolean;
  isBusy: boolean;
  canSend: boolean;
  onSend: (draft: Draft) => void;
  onStop: () => void;
  onExplain: (draft: Draft) => void;
}

/** Takes a prompt with its pictures. */
export function Composer({ takesPictures, isBusy, canSend, onSend, onStop, onExplain }: Props) {
  const t = useStrings(strings);
  const [text, setText] = useState("");
  const [pictures, setPictures] = useState<readonly string[]>([]);
  const [problem, setProblem] = useState("");
  const draft = { text: text.trim(), pictures: takesPictures ? pictures : [] };
  const isReady = canSend && (draft.text !== "" || draft.pictures.length > 0);

  const send = () => {
    if (!isReady || isBusy) return;
    onSend(draft);
    setText("");
    setPictures([]);
    setProblem("");
  };
  const addFiles = async (files: readonly File[]) => {
    const fitting = files.filter((file) => file.size <= MAX_BYTES).slice(0, MAX_PICTURES - pictures.length);
    const left = files.find((file) => !fitting.includes(file));
    setProblem(left ? t.pictureTooLarge(left.name) : "");
    const urls = await Promise.all(fitting.map(readAsUrl));
    setPictures((known) => [...known, ...urls].slice(0, MAX_PICTURES));
  };
  const paste = (event: ClipboardEvent) => {
    const files = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
    if (!takesPictures || files.length === 0) return;
    event.preventDefault();
    void addFiles(files);
  };
  const handleKey = (event: KeyboardEvent) => {
    // Enter also ends the choice of Japanese characters, which sends nothing.
    if (event.key !== "Enter" || event.shiftKey || event.nativeEvent.isComposing) return;
    event.preventDefault();
    send();
  };

  return (
    <Box pos="sticky" bottom={0} bg="var(--mantine-color-body)" pt="xs" pb="sm" style={{ zIndex: 2 }}>
      {takesPictures && pictures.length > 0 && (
        <Group gap="xs" mb="xs">
          {pictures.map((url, place) => (
            <Box key={url} pos="relative">
              <Image src={url} alt={t.picture} w={64} h={64} fit="cover" radius="sm" />
              <CloseButton
                size="xs" variant="filled" pos="absolute" top={2} right={2} aria-label={t.removePicture}
                onClick={() => setPictures(pictures.filter((_, other) => other !== place))}
              />
            </Box>
          ))}
        </Group>
      )}
      {problem !== "" && <Text size="xs" c="red" role="alert" mb={4}>{problem}</Text>}
      <Textarea
        aria-label={t.prompt} placeholder={`${t.prompt} – ${t.promptHint}`} autosize minRows={2} maxRows={10}
        value={text} onChange={(event) => setText(event.currentTarget.value)} onKeyDown={handleKey}
        onPaste={paste} data-autofocus
      />
      <Group justify="space-between" mt="xs" gap="xs">
        <Group gap="xs">
          <FileButton accept="image/png,image/jpeg,image/webp,image/gif" multiple onChange={(files) => void addFiles(files)}>
            {(props) => (
              <Tooltip label={takesPictures ? t.addPicture : t.noPictures}>
                <ActionIcon
                  {...props} variant="default" size="input-sm" data-disabled={!takesPictures || undefined}
                  aria-disabled={!takesPictures} aria-label={takesPictures ? t.addPicture : t.noPictures}
                  onClick={takesPictures ? props.onClick : undefined}
                >
                  <IconPhoto size={18} />
                </ActionIcon>
              </Tooltip>
            )}
          </FileButton>
          <Button variant="default" disabled={!isReady} onClick={() => onExplain(draft)}>{t.explain}</Button>
        </Group>
        {isBusy
          ? <Button color="red" leftSection={<IconPlayerStopFilled size={16} />} onClick={onStop}>{t.stop}</Button>
          : <Button disabled={!isReady} leftSection={<IconSend size={16} />} onClick={send}>{t.send}</Button>}
      </Group>
    </Box>
  );
}

function readAsUrl(file: File): Promise<string> {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result as string);
    reader.onerror = () => reject(reader.error as Error);
    reader.readAsDataURL(file);
  });
}
