/** A small picture of a file, which opens the large one. */

import { IconFile, IconMusic, IconPlayerPlay, IconPhotoOff } from "@tabler/icons-react";
import { useState } from "react";

import { PlainButton } from "#/components/plain";
import { useStrings } from "#/language";

import { strings } from "./strings";

/** A stored file, in a list or of a job. */
export interface PictureFile {
  id: string;
  url: string;
  name: string;
  media_type: string;
  size: number;
  job: string | null;
  created_at?: string;
  favourite?: boolean;
}

export function isPicture(file: PictureFile): boolean {
  return file.media_type.startsWith("image/");
}

export function isVideo(file: PictureFile): boolean {
  return file.media_type.startsWith("video/");
}

export function Thumbnail({ file, onOpen }: { file: PictureFile; onOpen: () => void }) {
  const t = useStrings(strings);
  const [hasFailed, setHasFailed] = useState(false);
  const hasPicture = (isPicture(file) || isVideo(file)) && !hasFailed;
  return (
    <PlainButton
      onClick={onOpen} className="thumbnail"
      // Names also what is written in it.
      aria-label={hasPicture ? t.open(file.name) : `${t.open(file.name)}, ${file.media_type}`}
    >
      {hasPicture ? (
        <img src={`${file.url}?w=384`} alt="" loading="lazy" decoding="async" onError={() => setHasFailed(true)} />
      ) : (
        <>
          <FileIcon file={file} />
          <span className="text-xs dimmed">{file.media_type}</span>
        </>
      )}
    </PlainButton>
  );
}

function FileIcon({ file }: { file: PictureFile }) {
  const Icon = isPicture(file) ? IconPhotoOff : isVideo(file) ? IconPlayerPlay : file.media_type.startsWith("audio/") ? IconMusic : IconFile;
  return <Icon size={36} stroke={1.3} aria-hidden />;
}
