import { Center, Image, Text } from "@mantine/core";

import { useStrings } from "#/language";

import { strings } from "./strings";
import { isPicture, isVideo, type PictureFile } from "./thumbnail";

/** A file in full size, as far as browsers show its kind. */
export function Media({ file, height }: { file: PictureFile; height: string }) {
  const t = useStrings(strings);
  if (isPicture(file)) return <Image src={file.url} alt={file.name} fit="contain" mah={height} w="100%" radius="sm" />;
  // Renders have no captions.
  if (isVideo(file)) return <video src={file.url} controls loop aria-label={file.name} style={{ maxHeight: height, width: "100%" }} />;
  if (file.media_type.startsWith("audio/")) return <audio src={file.url} controls aria-label={file.name} style={{ width: "100%" }} />;
  return <Center mih={200}><Text c="dimmed">{t.noPreview}</Text></Center>;
}
