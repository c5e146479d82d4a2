// What the model that obeys answers, for all scripts (tests/acceptance/scripted.py).
export const TEXT = "Hello! It is sunny, and the answer is 3.";
export const QUESTION = "What is the weather in 'Paris'?";
export const SENTENCE = "The person 'Ada' is 36 years old.";
export const PERSON = { name: "Ada", age: 36 };
export const RESULT = "sunny in Paris";
// A transparent pixel.
export const PNG =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==";
