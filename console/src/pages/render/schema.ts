/** The JSON Schema of a template's inputs, and the values of its form. */

import { isScalar, parseInteger, showScalar } from "./exact-json";

export interface InputSchema {
  type: "string" | "integer" | "number" | "boolean";
  title?: string;
  description?: string;
  default?: unknown;
  enum?: unknown[];
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
  multipleOf?: number;
  minLength?: number;
  maxLength?: number;
  pattern?: string;
  format?: "image";
  examples?: unknown[];
}

/** What stands in the form: texts for all but booleans. */
export type Values = Record<string, string | boolean>;

export function listSchemas(inputs: Record<string, unknown>): [string, InputSchema][] {
  return Object.entries((inputs.properties ?? {}) as Record<string, InputSchema>);
}

export function isRequired(inputs: Record<string, unknown>, name: string): boolean {
  return Array.isArray(inputs.required) && inputs.required.includes(name);
}

/** Return the form's first values: those of an earlier job, else the defaults. */
export function fillValues(inputs: Record<string, unknown>, given: Record<string, unknown> = {}): Values {
  return Object.fromEntries(listSchemas(inputs).map(([name, schema]) => {
    const value = isScalar(given[name]) ? given[name] : schema.default;
    if (schema.type === "boolean") return [name, value === true];
    return [name, value === undefined || value === null ? "" : showScalar(value)];
  }));
}

export type Problem =
  | { kind: "required" | "notANumber" | "notAnInteger" }
  | { kind: "least" | "most" | "above" | "below" | "multiple" | "shortest" | "longest"; bound: number };

/** Return the JSON value of a text, or what is wrong with it. */
export function parseValue(schema: InputSchema, text: string | boolean): { value: unknown } | { problem: Problem } {
  if (typeof text === "boolean") return { value: text };
  if (schema.type === "boolean") return { value: text === "true" };
  if (schema.type === "string") return checkLength(schema, text);
  const value = schema.type === "integer" ? parseInteger(text) : parseNumber(text);
  if (value === null) return { problem: { kind: schema.type === "integer" ? "notAnInteger" : "notANumber" } };
  const problem = checkRange(schema, Number(text));
  return problem === null ? { value } : { problem };
}

function parseNumber(text: string): number | null {
  const value = Number(text);
  return text.trim() === "" || !Number.isFinite(value) ? null : value;
}

function checkLength(schema: InputSchema, text: string): { value: string } | { problem: Problem } {
  const { minLength = 0, maxLength = Infinity } = schema;
  const length = [...text].length;
  if (length < minLength) return { problem: { kind: "shortest", bound: minLength } };
  return length > maxLength ? { problem: { kind: "longest", bound: maxLength } } : { value: text };
}

function checkRange(schema: InputSchema, value: number): Problem | null {
  const { minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf } = schema;
  if (minimum !== undefined && value < minimum) return { kind: "least", bound: minimum };
  if (maximum !== undefined && value > maximum) return { kind: "most", bound: maximum };
  if (exclusiveMinimum !== undefined && value <= exclusiveMinimum) return { kind: "above", bound: exclusiveMinimum };
  if (exclusiveMaximum !== undefined && value >= exclusiveMaximum) return { kind: "below", bound: exclusiveMaximum };
  // The server decides about fractions, whose remainders are inexact.
  const isWrong = multipleOf !== undefined && Number.isInteger(multipleOf) && value % multipleOf !== 0;
  return isWrong ? { kind: "multiple", bound: multipleOf } : null;
}
