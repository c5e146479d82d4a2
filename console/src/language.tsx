/** Chooses the language of all pages: the one that the person chose, else the browser's. */

import { createContext, type ReactNode, useContext, useEffect, useMemo, useState } from "react";

export const LANGUAGES = { en: "English", ja: "日本語" } as const;
export type Language = keyof typeof LANGUAGES;

/** The strings of one page in all languages; the compiler finds strings that a language lacks. */
export type Catalogue<S> = Record<Language, S>;

const UNITS: Catalogue<Record<"second" | "minute" | "hour", string>> = {
  en: { second: "s", minute: "min", hour: "h" },
  ja: { second: "秒", minute: "分", hour: "時間" },
};
const STORED = "moyin.language";
const Context = createContext<{ language: Language; choose: (language: Language) => void } | null>(null);

function findLanguage(): Language {
  const stored = localStorage.getItem(STORED);
  if (stored === "en" || stored === "ja") return stored;
  return navigator.languages.some((name) => name.startsWith("ja")) ? "ja" : "en";
}

export function LanguageProvider({ children }: { children: ReactNode }) {
  const [language, setLanguage] = useState(findLanguage);
  useEffect(() => {
    document.documentElement.lang = language;
  }, [language]);
  useEffect(() => {
    // A person who chooses another language in one tab has chosen it for all.
    const follow = (event: StorageEvent) => {
      if (event.key === STORED) setLanguage(findLanguage());
    };
    window.addEventListener("storage", follow);
    return () => window.removeEventListener("storage", follow);
  }, []);
  const value = useMemo(() => ({
    language,
    choose: (chosen: Language) => {
      localStorage.setItem(STORED, chosen);
      setLanguage(chosen);
    },
  }), [language]);
  return <Context.Provider value={value}>{children}</Context.Provider>;
}

export function useLanguage() {
  const value = useContext(Context);
  if (value === null) throw new Error("there is no LanguageProvider above");
  return value;
}

/** Return the strings of a catalogue in the chosen language. */
export function useStrings<S>(catalogue: Catalogue<S>): S {
  return catalogue[useLanguage().language];
}

// Shared by all components: a browser needs longer to make a format than to draw a row of a table.
const formats = new Map<Language, Format>();

/** Return functions that write numbers, money and times as the chosen language does. */
export function useFormat(): Format {
  const { language } = useLanguage();
  const format = formats.get(language) ?? newFormat(language);
  formats.set(language, format);
  return format;
}

export type Format = ReturnType<typeof newFormat>;

/** Return a function that makes a value when it is first needed. */
function makeOnce<T extends object>(make: () => T): () => T {
  let made: T | undefined;
  return () => (made ??= make());
}

function newFormat(language: Language) {
  const number = new Intl.NumberFormat(language, { maximumFractionDigits: 1 });
  const money = makeOnce(() => new Intl.NumberFormat(language, {
    style: "currency", currency: "USD", minimumFractionDigits: 2, maximumFractionDigits: 4,
  }));
  const smallMoney = makeOnce(() => new Intl.NumberFormat(language, {
    style: "currency", currency: "USD", maximumSignificantDigits: 2,
  }));
  const bytes = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"].map((unit) => (
    makeOnce(() => new Intl.NumberFormat(language, { maximumFractionDigits: 1, style: "unit", unit }))
  ));
  const moment = makeOnce(() => new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "medium" }));
  const languages = makeOnce(() => new Intl.DisplayNames(language, { type: "language" }));
  const relative = makeOnce(() => new Intl.RelativeTimeFormat(language, { numeric: "auto", style: "short" }));
  return {
    /** The name of a language by its ISO 639 code. */
    languageName: (code: string) => languages().of(code) ?? code,
    number: (value: number) => number.format(value),
    /** Below a cent the first two digits count: a call may cost some millionths of a dollar, and is not free. */
    usd: (value: number) => (value !== 0 && Math.abs(value) < 0.01 ? smallMoney : money)().format(value),
    bytes: (value: number) => {
      const power = Math.min(bytes.length - 1, Math.max(0, Math.floor(Math.log10(Math.max(1, value)) / 3)));
      return bytes[power]!().format(value / 1000 ** power);
    },
    /** A date with its time; `value` is an ISO 8601 text. */
    time: (value: string) => moment().format(new Date(value)),
    /** How long ago, or in how long, from now. */
    ago: (value: string) => {
      const seconds = (Date.parse(value) - Date.now()) / 1000;
      for (const [unit, size] of [["day", 86_400], ["hour", 3_600], ["minute", 60]] as const) {
        if (Math.abs(seconds) >= size) return relative().format(Math.round(seconds / size), unit);
      }
      return relative().format(Math.round(seconds), "second");
    },
    seconds: (value: number) => {
      const { second, minute, hour } = UNITS[language];
      if (value < 60) return `${number.format(value)} ${second}`;
      const minutes = Math.floor(value / 60);
      return minutes < 60
        ? `${minutes} ${minute} ${Math.round(value % 60)} ${second}`
        : `${Math.floor(minutes / 60)} ${hour} ${minutes % 60} ${minute}`;
    },
  };
}
